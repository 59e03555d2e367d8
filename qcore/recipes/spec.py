"""The specification of a run: a model, recipes, a text and the conditions of every measurement. It is frozen
and converts to and from JSON.

A record holds its `RunSpec`, so the run can be repeated: `RunSpec.from_dict(record["spec"])` is the same run,
and `command` is its command line. Recipes are parsed when the spec is built, so a typo is found before the
run starts. No import here loads torch before there is a recipe to parse.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qcore.base.errors import InputError
from qcore.base.files import LONGEST_PATH, expanded
from qcore.base.home import DEFAULT_MODELS, is_public
from qcore.base.texts import DEFAULT, WIKITEXT
from qcore.formats.kv import NONE, KVFormat, kv_format_named

if TYPE_CHECKING:
    from qcore.recipes import Recipe

# field: (smallest, largest) value; the largest only catch typing errors
LIMITS = {
    "tokens": (2, 10_000_000),
    "window": (2, 1_000_000),
    "stride": (1, 1_000_000),
    "prompt_tokens": (1, 100_000),
    "new_tokens": (2, 4096),
    "repeats": (1, 100),
    "generate_tokens": (1, 4096),
    "threads": (1, 1024),
    "seed": (0, 2**63 - 1),
    "calibration_tokens": (16, 10_000_000),
}
LONGEST_MINUTES = 100_000.0
LARGEST_MARGIN = 1.0
OPTIONAL = ("stride", "threads")
BASELINE = "fp32"


@dataclass(frozen=True)
class RunSpec:
    """`recipes` takes `Recipe`s or their names, "saved:FOLDER" among them (see `recipes.parse_row`). Lengths
    are in tokens.

    `text` is what `qcore.base.texts.load_text` takes (None: the packaged text); its first `tokens` tokens are
    scored in windows of `window` that move by `stride` (None: by the window). Speed is measured with a prompt
    of `prompt_tokens` and `new_tokens` new ones, `repeats` times. With `generate`, the evaluation prompts
    (`prompts`: a file, None: the packaged ones) are continued for `generate_tokens` each, with `chat` as
    messages in the model's chat template if it has one. Recipes with calibrated methods read
    `calibration_tokens` of the text `calibration` (None: the packaged calibration
    text). Learned methods take about `calibration_minutes` (None: a fixed number of steps). `imatrix` is a
    file with llama.cpp's importance matrix, for recipes with -imatrix. A recipe's perplexity counts as equal
    to the baseline's within `margin` (0.01 is 1 %). `choices` adds multiple-choice questions: "default" (the
    packaged ones) or a file; None asks none. `kv` is the format of the key-value cache for scoring, speed and
    prompts ("int8", "int4"); the baseline's cache stays unquantized. Raise `InputError` naming the field, its
    value and what is allowed.
    """

    kind: ClassVar[str] = "compare"  # the kind of job, see `qcore.jobs.kinds`
    model: str
    recipes: tuple[Recipe, ...]
    _: KW_ONLY
    revision: str | None = None
    text: str | None = None
    tokens: int = 4096
    window: int = 512
    stride: int | None = None
    prompt_tokens: int = 128
    new_tokens: int = 32
    repeats: int = 3
    generate: bool = True
    prompts: str | None = None
    chat: bool = True
    generate_tokens: int = 32
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    calibration: str | None = None
    calibration_tokens: int = 16384
    calibration_minutes: float | None = None
    imatrix: str | None = None
    margin: float = 0.01
    choices: str | None = None
    kv: str = NONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipes", _parse_all(self.recipes))
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))
        if not isinstance(self.model, str) or not self.model.strip():
            raise InputError("No model was given; name a folder, a hub id, or smollm2-135m.")
        for name in ("text", "prompts", "revision", "calibration", "imatrix", "choices"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, str(value))
        check_limits(**{name: getattr(self, name) for name in LIMITS})
        check_minutes(self.calibration_minutes)
        check_margin(self.margin)
        kv_format_named(self.kv)
        if self.stride is not None and self.stride > self.window:
            raise InputError(
                f"stride is {self.stride}, but it must not exceed the window ({self.window}): tokens would "
                "be skipped."
            )

    @property
    def kv_format(self) -> KVFormat | None:
        """The format of the key-value cache, None if unquantized."""
        return kv_format_named(self.kv)

    def is_baseline(self, recipe: str) -> bool:
        """Return whether the recipe called `recipe` is the baseline of the comparison. With a quantized cache
        there is none among the recipes."""
        return recipe == BASELINE and self.kv == NONE

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` is its inverse."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "recipes": [recipe.to_dict() for recipe in self.recipes],
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> RunSpec:
        """Rebuild a spec from `to_dict`. Raise `InputError` if a field is missing, unknown or out of
        range."""
        from qcore.recipes import Recipe

        try:
            return cls(
                **{**record, "recipes": tuple(Recipe.from_dict(recipe) for recipe in record["recipes"])}
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"This record of a run cannot be read: {error}.") from error

    def absolute(self) -> RunSpec:
        """Return the same spec with relative paths made absolute, so that it is valid from any folder.

        On a public server a name is never a path, even if a folder of that name exists.
        """
        if is_public():
            return self
        files = ("text", "prompts", "calibration", "imatrix", "choices")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {name: absolute_path(values[name]) for name in files}
        values["model"] = absolute_model(self.model)
        return RunSpec(**{**values, "recipes": tuple(_absolute(recipe) for recipe in self.recipes)})

    @property
    def command(self) -> str | None:
        """The command line that repeats this run, or None if recipes hold choices that no option sets."""
        skips = {recipe.modules.skip for recipe in self.recipes if recipe.quantizes}
        plain = all(recipe == _plain(recipe) for recipe in self.recipes)
        if len(skips) > 1 or not plain:
            return None
        words = [
            "python",
            "-m",
            "qcore",
            "compare",
            self.model,
            "--recipes",
            ",".join(_typed(recipe) for recipe in self.recipes),
        ]
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("model", "recipes") or value == f.default:
                continue
            words += [f"--no-{f.name}"] if value is False else ["--" + f.name.replace("_", "-"), str(value)]
        for pattern in next(iter(skips), ()):
            words += ["--skip", pattern]
        return shlex.join(words)


def beside(recipes: str | Iterable[str | Recipe], files: str | Iterable[str]) -> tuple[Recipe, ...]:
    """Return `recipes` as recipes, and after them a row for each model in `files`. Raise `InputError` as
    `RunSpec` and `file_rows` do."""
    from qcore.recipes.files import file_rows

    return (*_parse_all(recipes), *file_rows(files))


def check_limits(**values: object) -> None:
    """Raise `InputError` for the first of `values` (names of `LIMITS`) that is not a whole number within its
    limits."""
    for name, value in values.items():
        low, high = LIMITS[name]
        if value is None and name in OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"{name} is {value!r}, but it must be a whole number from {low} to {high}.")


def check_minutes(minutes: float | None) -> None:
    """Raise `InputError` unless `minutes` is None or a positive number."""
    if minutes is None:
        return
    if (
        isinstance(minutes, bool)
        or not isinstance(minutes, int | float)
        or not 0 < minutes <= LONGEST_MINUTES
    ):
        raise InputError(f"calibration_minutes is {minutes!r}, but it must be a number of minutes above 0.")


def check_margin(margin: float) -> None:
    """Raise `InputError` unless `margin` is a share above 0 and at most 1."""
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin <= LARGEST_MARGIN:
        raise InputError(
            f"margin is {margin!r}, but it must be above 0 and at most 1: 0.01 means within 1 %."
        )


def absolute_path(source: str | None) -> str | None:
    """Return `source` made absolute if it is a relative path of a file that exists; names of packaged texts
    and None stay unchanged."""
    if source is None or source in (DEFAULT, WIKITEXT):
        return source
    return _made_absolute(source)


def absolute_model(model: str) -> str:
    """Return `model` made absolute if it is a relative path that exists, with or without a slash in it; names
    of default models stay unchanged."""
    return model if model.strip().lower() in DEFAULT_MODELS else _made_absolute(model)


def _made_absolute(source: str) -> str:
    if len(source) >= LONGEST_PATH:
        return source
    try:
        for text in dict.fromkeys((source, source.strip())):
            if (path := expanded(text)).exists():
                return str(path.resolve())
        return source
    except (OSError, ValueError, RuntimeError):  # not a path: a null byte, an unknown home
        return source


def _typed(recipe: Recipe) -> str:
    """Return the name of `recipe` for the command line."""
    from qcore.recipes import FILE, SAVED, Saved

    if not isinstance(recipe.weights, Saved):
        return recipe.name
    return (FILE if recipe.name.startswith(FILE) else SAVED) + recipe.weights.folder


def _absolute(recipe: Recipe) -> Recipe:
    from qcore.recipes import FILE, Saved

    if not isinstance(recipe.weights, Saved):
        return recipe
    if recipe.name.startswith(FILE):  # it may be a hub id
        return replace(recipe, weights=Saved(_made_absolute(recipe.weights.folder)))
    return replace(recipe, weights=Saved(str(expanded(recipe.weights.folder).absolute())))


def _plain(recipe: Recipe) -> Recipe | None:
    from qcore.recipes import parse_row

    try:
        return parse_row(_typed(recipe)).with_modules(skip=recipe.modules.skip)
    except InputError:
        return None


def _parse_all(recipes: str | Iterable[str | Recipe]) -> tuple[Recipe, ...]:
    from qcore.recipes import FILE, SAVED, parse_all, parse_row

    if isinstance(recipes, str):
        recipes = [name for name in recipes.split(",") if name.strip()]
    parsed = parse_all(recipes, parse_row)
    for recipe in parsed:
        if parsed.count(recipe) > 1:
            raise InputError(f"Recipe {recipe.name!r} is given twice.")
        named = recipe.name.startswith((SAVED, FILE))
        if named and [other.name for other in parsed].count(recipe.name) > 1:
            raise InputError(f"Two rows would both be called {recipe.name!r}. Rename one of the files.")
    return parsed

"""Names of recipes: parsed, described and listed from one table of their parts.

A name starts with the format; options follow in any order.

    fp32 bf16 fp16                    floating point: the baseline and 16-bit formats
    int8                              uniform, one scale per channel, symmetric
    int4-g64 int4-g32-sym int3 int2   uniform, one scale per group of inputs, asymmetric unless -sym
    nf4-g64 fp4-g64 kmeans4           a table of 16 values, fixed or learned
    affine4-g64                       uniform, one scale and float minimum per group of inputs
    gguf-q4_0 gguf-q4_k gguf-iq4_nl … the types of llama.cpp
    …-dq                              double quantization: 8-bit scales
    …-dynamic                         activations are quantized to 8 bits per token at run time
    …-a32 …-a16 …-a8                  how a weight-only kernel reads activations: exactly, in 16
                                      bits (the default) or in 8 bits
    …-head8                           output head and embedding in int8
    …-towers8                         linear layers of a wrapper's towers in int8
    …-gptq …-hqq …                    how codes are chosen; each method declares its option (methods.py)
    rot-…                             the residual stream is rotated first, to spread outliers
    gguf-q4_k_m gguf-q3_k_l …         llama.cpp's mixtures of its types, head and embedding included
    auto-4.25bpw auto-90mb auto-0.1kl a format per layer: the least predicted loss within a budget of bits
                                      per weight or bytes, or the fewest bytes within a loss; -dq and the
                                      methods for single layers combine with it
    gguf-auto-4.5bpw                  the same among the types of llama.cpp
    bnb-nf4 torchao-int8 …            another library's implementation (engines.py)

`Format.BASES` of each kind of format lists the first parts of its names. A row of a comparison can also be
`saved:FOLDER`, a quantized, trained, pruned or distilled version of the same model, or `file:NAME`, one that
another project quantized: a GGUF file, a folder, or a hub id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qcore.base.errors import InputError
from qcore.base.files import LONGEST_PATH, expanded
from qcore.base.home import is_public
from qcore.base.registry import unknown
from qcore.formats import budget, kinds, mixture
from qcore.formats.budget import Budget
from qcore.formats.kinds import Format
from qcore.formats.mixture import Mixture
from qcore.recipes import engines, methods
from qcore.recipes.recipe import Engine, Float, Modules, Recipe, Saved

SAVED, FILE, ROTATED = "saved:", "file:", "rot-"
MOST_RECIPES, LONGEST_NAME = 200, 200  # of a request; characters
AUTO, GGUF_AUTO = "auto", "gguf-auto"
FLOATS = {
    "fp32": "32-bit floating point, the baseline",
    "bf16": "16-bit brain float: half the bytes, the same range, 8 bits of precision",
    "fp16": "16-bit float: half the bytes, 11 bits of precision, largest value 65504",
}
_AUTOS = {
    AUTO: "a format per layer, chosen by the layer's sensitivity on calibration text",
    GGUF_AUTO: "a type of llama.cpp per layer, chosen by the layer's sensitivity on calibration text",
}
_MIXTURES = {
    mixture.PREFIX + size: f"types of llama.cpp per tensor, as in its files called {title}"
    for size, (_, title) in mixture.SIZES.items()
}
_ACTIVATIONS = {"a32": "fp32", "a16": "int16", "a8": "int8-block", "dynamic": "int8"}
MIXED = (*_AUTOS, *_MIXTURES)  # the bases that give each layer a format of its own
COMMON = (
    "fp32",
    "bf16",
    "fp16",
    "int8",
    "int8-g64",
    "int8-dynamic",
    "int4-g32",
    "int4-g64",
    "int4-g128",
    "int4-g64-sym",
    "int4-g64-dq",
    "int3",
    "int2",
    "nf4-g64",
    "nf4-g64-dq",
    "fp4-g64",
    "fp4-g64-dq",
    "kmeans4",
    "kmeans4-g64",
    "int4-g32-head8",
)
AUTOMATIC = ("auto-4.25bpw", "auto-4.25bpw-gptq", "gguf-q4_k_m-gptq", "gguf-auto-4.5bpw-gptq")


@dataclass(frozen=True)
class Part:
    """An option of a name: the `field` it sets (at most one option per field), its pattern, and its
    description for users."""

    field: str
    pattern: str
    words: Callable[[str], str]


_PARTS = (
    Part("budget", budget.PATTERN, lambda option: "at most " + _read_budget(option).words),
    Part("size", r"g\d+", lambda option: f"groups of {option[1:]} inputs"),
    Part("symmetry", "sym", lambda option: "symmetric, so no zero point is stored"),
    Part("symmetry", "asym", lambda option: "asymmetric, with a zero point"),
    Part("scales", "dq", lambda option: "scales in 8 bits"),
    Part("activations", "dynamic", lambda option: "activations also in 8 bits"),
    Part("activations", r"a(8|16|32)", lambda option: f"activations read in {option[1:]} bits by the kernel"),
    Part("modules", "head8", lambda option: "head and embedding in int8"),
    Part("towers", "towers8", lambda option: "linear layers of towers in int8"),
)


_BUDGET = "auto needs one budget: bits per weight, MB or nats, as in auto-4.25bpw, auto-90mb or auto-0.1kl"
_EXCLUDE = {  # the message for two options of a field
    "budget": _BUDGET,
    "activations": "-dynamic, -a8, -a16 and -a32 exclude each other",
    "method": "-{} and -{} exclude each other",
}


@dataclass(frozen=True)
class Name:
    """A parsed name: whether the model is rotated first, the base, and the options in order, each as (option,
    its row of the table)."""

    rotated: bool
    base: str
    options: tuple[tuple[str, Part], ...]

    @classmethod
    def read(cls, name: str) -> Name | None:
        """Return the parts of `name`; None if one is unknown."""
        bare = name.removeprefix(ROTATED)
        base = base_of(bare)
        if base is None:
            return None
        options = bare.removeprefix(base).split("-")[1:]
        found = [(option, part) for option in options if (part := _part(option)) is not None]
        if len(found) < len(options):
            return None
        return cls(name.startswith(ROTATED), base, tuple(found))

    def get(self, field: str) -> str | None:
        """Return the option that sets `field`, or None."""
        return next((option for option, part in self.options if part.field == field), None)

    @property
    def words(self) -> str:
        """A one-line description for users."""
        texts = [known_bases()[self.base], *(part.words(option) for option, part in self.options)]
        return "; ".join(texts + ["the residual stream rotated first"] * self.rotated)


def known_bases() -> dict[str, str]:
    """Return the description of each base, for users."""
    formats = {base: kind.BASES[base].words for base, kind in kinds.bases().items()}
    return FLOATS | formats | _MIXTURES | _AUTOS


def base_of(name: str) -> str | None:
    """Return the base that the recipe name begins with, such as "int4" and "gguf-q4_0"; None if it is
    unknown."""
    parts, known = name.removeprefix(ROTATED).split("-"), known_bases()
    return next((base for base in ("-".join(parts[:2]), parts[0]) if base in known), None)


def names() -> list[str]:
    """Return the recipes to offer in a list: those without calibration text, those with it, then other
    libraries'. `parse` accepts more names (any group size)."""
    return [*common(), *with_text(), *engines.recipes()]


def common() -> list[str]:
    """Return recipes that read no text: those of the formats, then of the methods."""
    formats = [name for kind in kinds.KINDS.values() for name in kind.EXAMPLES]
    return list(dict.fromkeys([*COMMON, *formats, "gguf-q4_k_m", *_examples(needs_text=False)]))


def with_text() -> list[str]:
    """Return recipes that read calibration text, which `convert.quantize` must be given."""
    return [*_examples(needs_text=True), *AUTOMATIC]


def describe(recipe: Recipe) -> str:
    """Return a one-line description of the recipe called `name` for newcomers."""
    if isinstance(recipe.weights, Saved):
        foreign = recipe.name.startswith(FILE)
        made = "quantized by another project" if foreign else "made from this model before"
        return f"{made}, in {recipe.weights.folder}"
    if isinstance(recipe.weights, Engine):
        return engines.variant(recipe.weights.backend, recipe.weights.variant).words
    found = Name.read(recipe.name)
    if found is None:
        raise unknown("recipe", recipe.name, names())
    return found.words


def parse(name: str) -> Recipe:
    """Return the recipe called `name`; "int4" is short for "int4-g64".

    Raise `InputError` with near names for an unknown one, for options that contradict each other, and for
    more than `LONGEST_NAME` characters.
    """
    name = _short(name, LONGEST_NAME).strip().lower()
    known = engines.recipes()
    if name in known:
        engine, variant = known[name]
        return Recipe(name, Engine(engine.name, variant.name))
    found = Name.read(name)
    if found is None:
        if match := re.fullmatch(r"([2-8])[-_ ]?bits?", name):
            raise InputError(f"Unknown recipe {name!r}. Did you mean int{match[1]}?")
        if len(words := re.split(r"[\s;]+", name)) > 1 and all(words):
            raise InputError(f"Unknown recipe {name!r}. Separate recipes by commas: {','.join(words)}.")
        raise unknown("recipe", name, names())
    _check_once(name, found)
    try:
        return _build(name, found)
    except ValueError as error:
        raise InputError(f"Recipe {name!r} cannot be built: {error}.") from error


def parse_row(name: str) -> Recipe:
    """Return the recipe of a row of a comparison: `parse` of a recipe name, or for "saved:FOLDER" and
    "file:NAME" a recipe named after the folder or file. Raise `InputError` as `parse` does, and for a path
    without a name or with more than `LONGEST_PATH` characters."""
    name = _short(name, LONGEST_PATH).strip()
    prefix = next((prefix for prefix in (SAVED, FILE) if name.startswith(prefix)), None)
    if prefix is None:
        return parse(name)
    folder = name.removeprefix(prefix)
    # Whether a public server takes the name is checked later; until then nothing of its disk is looked up.
    last = folder.rpartition("/")[2] if is_public() else folder and expanded(folder).absolute().name
    if not last and prefix == SAVED:
        raise InputError(
            f"{name!r} does not name a folder. Write {SAVED} and the folder that quantize, qat, prune, "
            "distill or export made."
        )
    if not last:
        raise InputError(f"{name!r} does not name a model. Give a GGUF file, a folder or a hub id.")
    return Recipe(prefix + last, Saved(folder))


def parse_all(names: Iterable[str | Recipe], read: Callable[[str], Recipe] = parse) -> tuple[Recipe, ...]:
    """Return the recipes of a request, `read` from their names. Raise `InputError` for none, for more than
    `MOST_RECIPES`, and as `read` does."""
    given = tuple(names)
    if not given:
        raise InputError("No recipe was given. Name one or several, such as fp32, int8 or int4-g64.")
    if len(given) > MOST_RECIPES:
        raise InputError(f"{len(given):,} recipes were given, but at most {MOST_RECIPES} are allowed.")
    return tuple(each if isinstance(each, Recipe) else read(str(each)) for each in given)


def _short(name: str, longest: int) -> str:
    if len(name) > longest:
        raise InputError(
            f"The recipe {name[:40]!r}… has {len(name):,} characters, but at most {longest:,} are allowed. "
            "Separate several recipes by commas."
        )
    return name


def _part(option: str) -> Part | None:
    found = next((part for part in _PARTS if re.fullmatch(part.pattern, option)), None)
    if found is None and (info := methods.options().get(option)):
        return Part("method", option, lambda _: info.words)
    return found


def _examples(needs_text: bool) -> list[str]:
    infos = methods.METHODS.values()
    return [name for info in infos if info.needs_text is needs_text for name in info.examples]


def _check_once(name: str, found: Name) -> None:
    """Raise `InputError` if two options set the same field."""
    for field in dict.fromkeys(part.field for _, part in found.options):
        options = [option for option, part in found.options if part.field == field]
        if len(options) == 1:
            continue
        different = len({re.sub(r"[\d.]+", "", option) for option in options}) > 1
        if different and field in _EXCLUDE:
            raise InputError(f"Recipe {name!r} cannot be built: {_EXCLUDE[field].format(*options)}.")
        raise InputError(f"Recipe {name!r} gives the same option twice.")


def _build(name: str, found: Name) -> Recipe:
    if found.base in FLOATS:
        if found.options or found.rotated:
            raise ValueError(f"{found.base} takes no options")
        return Recipe(name, Float(found.base))
    weights = _weights(found)
    activations = found.get("activations")
    return Recipe(
        name,
        weights,
        method=_method(found, weights),
        activations="int16" if activations is None else _ACTIVATIONS[activations],
        modules=_modules(found, weights),
        prepare="rotation" if found.rotated else "none",
    )


def _weights(found: Name) -> Format | Mixture | Budget:
    if found.base in _AUTOS:
        return _budget(found)
    return _mixture(found) if found.base in _MIXTURES else _format(found)


def _modules(found: Name, weights: Format | Mixture | Budget) -> Modules:
    head = "same" if isinstance(weights, Mixture) else "keep"
    head = "int8" if found.get("modules") else head
    return Modules(head=head, embeddings=head, towers="int8" if found.get("towers") else "keep")


def _mixture(found: Name) -> Mixture:
    for field in ("budget", "size", "symmetry", "scales"):
        if option := found.get(field):
            raise ValueError(f"{found.base} is a mixture of fixed types, so -{option} does not apply")
    return Mixture(found.base.removeprefix(mixture.PREFIX))


def _format(found: Name) -> Format:
    if amount := found.get("budget"):
        raise ValueError(f"a budget belongs to auto, as in auto-{amount}, not to {found.base}")
    kind = kinds.bases()[found.base]
    symmetry, scales, size = found.get("symmetry"), found.get("scales"), found.get("size")
    if symmetry and symmetry not in kind.OPTIONS:
        raise ValueError(f"{found.base} has one kind of grid, so -sym and -asym do not apply")
    if scales and scales not in kind.OPTIONS:
        raise ValueError(f"the scales of {found.base} cannot be quantized again, so -{scales} does not apply")
    group_size = int(size[1:]) if size else kind.BASES[found.base].group_size
    return kind.from_name(found.base, group_size, {option for option in (symmetry, scales) if option})


def _budget(found: Name) -> Budget:
    amount = found.get("budget")
    if amount is None:
        raise ValueError(_BUDGET)
    if found.get("size") or found.get("symmetry"):
        raise ValueError("auto chooses the group sizes, so -g, -sym and -asym do not apply")
    candidates = budget.with_double_quant() if found.get("scales") else budget.CANDIDATES
    if found.base == GGUF_AUTO:
        if found.get("scales"):
            raise ValueError("the types of llama.cpp have no double quantization, so -dq does not apply")
        candidates = budget.GGUF_CANDIDATES
    return _read_budget(amount, candidates)


def _read_budget(option: str, candidates: tuple[Format, ...] = budget.CANDIDATES) -> Budget:
    found = budget.read(option)
    if found is None:
        raise ValueError(f"{option} is not a budget")
    return Budget(*found, candidates)


def _method(found: Name, weights: Format | Mixture | Budget) -> str:
    option = found.get("method")
    if option is None:
        return weights.method if isinstance(weights, Format) else "rtn"
    info = methods.options()[option]
    formats = (weights,) if isinstance(weights, Format) else weights.candidates
    if not all(format.grid in info.grids for format in formats):
        raise ValueError(f"-{option} {info.limits}")
    return info.name

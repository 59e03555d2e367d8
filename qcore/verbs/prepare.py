"""Prepare a model, in the same way for every verb and every interface:

    find -> check the memory -> load -> load the calibration text -> quantize

`find` returns a `Checkpoint`, which later steps receive, so a model is resolved once per request. `Finder`
remembers the checkpoints of a request that names several models.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qcore import library, planning
from qcore.base.errors import InputError, UnavailableError
from qcore.base.home import home
from qcore.base.progress import Progress
from qcore.formats.budget import Budget
from qcore.library import Loaded
from qcore.library.saving import made_from
from qcore.models import Checkpoint, imatrix
from qcore.models.names import classify
from qcore.quantization import convert
from qcore.quantization.calibration import Calibration, load_calibration, unfinished
from qcore.quantization.calibration.text import TOKENS, calibration_text
from qcore.recipes import Recipe, parse
from qcore.recipes.ledger import Ledger
from qcore.recipes.spec import check_limits, check_minutes


@dataclass(frozen=True)
class CalibrationText:
    """The calibration text: `tokens` of the file `source` (None: the packaged text). Learned methods take
    about `minutes` (None: a fixed number of steps). `imatrix` is a file with llama.cpp's importance matrix,
    for recipes with -imatrix. Raise `InputError` for numbers out of range."""

    source: str | Path | None = None
    tokens: int = TOKENS
    minutes: float | None = None
    imatrix: str | Path | None = None

    def __post_init__(self):
        check_limits(calibration_tokens=self.tokens)
        check_minutes(self.minutes)

    def check(self, recipe: Recipe | None) -> None:
        """Raise `InputError` if `recipe` needs calibration text or an importance matrix that cannot be read,
        or if there is an importance matrix that it does not read."""
        if self.imatrix is not None:
            check_imatrix(self.imatrix, (recipe,))
        if recipe is not None and recipe.calibrated and not self._is_enough(recipe):
            calibration_text(self.source)

    def options(self, recipe: Recipe | None) -> dict[str, str | Path | int | float | None]:
        """Return the options of a command that reads this text for `recipe`, by name; empty if `recipe` needs
        no calibration."""
        if recipe is None or not recipe.calibrated:
            return {}
        given = {"calibration": self.source, "calibration_tokens": self.tokens}
        return given | {"calibration_minutes": self.minutes}

    def load(self, tokenizer, recipe: Recipe | None) -> Calibration | None:
        """Return the text in tokens, None if `recipe` needs no calibration. Raise `InputError` as
        `load_calibration` does."""
        if recipe is None or not recipe.calibrated:
            return None
        given = None if self.imatrix is None or recipe.method != "imatrix" else imatrix.read(self.imatrix)
        if given is not None and self._is_enough(recipe):
            return Calibration(
                given.name, given.sha256, torch.empty(0, 0, dtype=torch.long), importance=given
            )
        text = load_calibration(self.source, tokenizer, tokens=self.tokens, minutes=self.minutes)
        return replace(text, importance=given)

    def _is_enough(self, recipe: Recipe) -> bool:
        """Return whether `recipe` reads the importance matrix and no text."""
        return (
            self.imatrix is not None and recipe.method == "imatrix" and not isinstance(recipe.weights, Budget)
        )


def check_imatrix(source: str | Path, recipes: Iterable[Recipe | None]) -> None:
    """Raise `InputError` if `source` is not an importance matrix, or none of the `recipes` reads one."""
    if not any(recipe is not None and recipe.method == "imatrix" for recipe in recipes):
        raise InputError(
            "No recipe reads the importance matrix. Add -imatrix to a name, as in gguf-q4_0-imatrix, or "
            "leave the file out."
        )
    imatrix.read(source)


PACKAGED = CalibrationText()


@dataclass(frozen=True)
class Prepared:
    """A model ready for use, with its recipe, the ledger of its tensors, the calibration text from which its
    codes were chosen (None: no text), and the seconds of quantization (None: not quantized here)."""

    loaded: Loaded
    recipe: Recipe
    ledger: Ledger
    calibration: Calibration | None = None
    quantize_s: float | None = None

    @property
    def cautions(self) -> tuple[str, ...]:
        """Sentences on the calibration text for the user."""
        caution = None if self.calibration is None else self.calibration.caution
        return () if caution is None else (caution,)


class Finder:
    """Find the models of one request, each only once."""

    def __init__(self, progress: Progress | None = None):
        self._progress = progress
        self._found: dict[tuple[str, str | None], Checkpoint] = {}
        self._headers: dict[tuple[str, str | None], Checkpoint] = {}
        self._stored: dict[str, Checkpoint] = {}

    def __call__(self, model: str | Path, revision: str | None = None) -> Checkpoint:
        """Return the checkpoint of `model`. Raise `InputError` and `UnavailableError` as
        `library.resolve` does."""
        key = (str(model), revision)
        if key not in self._found:
            self._found[key] = library.resolve(model, revision, progress=self._progress)
        return self._found[key]

    def stored(self, model: str) -> Checkpoint:
        """Return the checkpoint of a row's own `model`, with the codes of its file. Raise `InputError` and
        `UnavailableError` as `library.resolve` does."""
        known = self._found.get((model, None))
        if known is not None and known.is_quantized:  # by qcore: both ways to read it are one
            return known
        if model not in self._stored:
            self._stored[model] = library.resolve(model, as_stored=True, progress=self._progress)
        return self._stored[model]

    def know(self, model: str | Path, revision: str | None, checkpoint: Checkpoint) -> None:
        """Use `checkpoint`, which is already resolved, for `model`."""
        self._found[str(model), revision] = checkpoint

    def headers(self, model: str | Path, revision: str | None = None) -> Checkpoint | None:
        """Return the checkpoint of `model` without downloading or converting its weights; None for a default
        model that is not in the cache.

        Raise `InputError` and `UnavailableError` as `library.outline` does. A model in the cache is found
        even if the hub does not answer.
        """
        key = (str(model), revision)
        if key in self._found:
            return self._found[key]
        name = classify(model, revision)
        if name.kind == "default" and not (home() / "models" / name.text).is_dir():
            return None
        if name.kind not in ("hub", "gguf"):
            return self(model, revision)
        if key not in self._headers:
            try:
                self._headers[key] = library.outline(model, revision, progress=self._progress)
            except UnavailableError:
                return self(model, revision)
        return self._headers[key]


def find(
    model: str | Path | Checkpoint,
    revision: str | None = None,
    *,
    as_stored: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Return the checkpoint of `model`, with `as_stored` as `library.resolve` does; a resolved `Checkpoint`
    is returned unchanged."""
    if isinstance(model, Checkpoint):
        return model
    return library.resolve(model, revision, as_stored=as_stored, progress=progress)


def find_original(
    model: str | Path | Checkpoint,
    revision: str | None = None,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Return the checkpoint of a model that can be quantized, trained or pruned into `folder`.

    Raise `InputError` for a quantized model, and for a `folder` that holds the model itself.
    """
    checkpoint = find(model, revision, progress=progress)
    if checkpoint.is_quantized:
        raise quantized_already(checkpoint)
    if folder is not None:
        check_apart(checkpoint, folder)
    return checkpoint


def quantized_already(checkpoint: Checkpoint) -> InputError:
    """Return the error for a quantized model where an original is required."""
    origin = made_from(checkpoint.folder)
    where = f"the original model, {origin['model']}" if origin else "the original model"
    return InputError(f"{checkpoint.name} is quantized already. Start from {where}, instead.")


def check_apart(checkpoint: Checkpoint, folder: Path) -> None:
    """Raise `InputError` if the output `folder` holds the model itself."""
    if folder.exists() and checkpoint.folder.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} holds the model itself. Choose another folder.")


def load(
    checkpoint: Checkpoint,
    recipe: Recipe | None = None,
    *,
    device: str = "cpu",
    tokens: int = 1,
    window: int = 1,
    check_finite: bool = True,
    progress: Progress | None = None,
) -> Loaded:
    """Load `checkpoint` on `device`, after checking that it fits into memory under `recipe` (None: unchanged)
    with a cache of `tokens` tokens and a window of `window` tokens.

    Raise `TooLargeError` with the arithmetic if it does not fit, `InputError` as `library.load` does.
    """
    planning.check_fits(checkpoint, recipe or parse("fp32"), tokens=tokens, window=window)
    if device != "cpu":
        planning.check_device_fits(checkpoint, recipe or parse("fp32"), device, tokens=tokens, window=window)
    return library.load(checkpoint, device=device, check_finite=check_finite, progress=progress)


def quantize(
    loaded: Loaded,
    recipe: Recipe,
    *,
    calibration: CalibrationText | Calibration = PACKAGED,
    resume: bool = True,
    progress: Progress | None = None,
) -> Prepared:
    """Apply `recipe` to `loaded`, in place: its full-precision weights are freed. `resume` requires unchanged
    weights of the checkpoint; finished blocks are then kept in the cache folder, so that the same call
    resumes after a kill.

    Raise `InputError` for an unusable model, text or skip pattern, `NotAppliedError` if the recipe quantized
    less than it should.
    """
    began = time.perf_counter()
    text: Calibration | None
    if isinstance(calibration, CalibrationText):
        text = calibration.load(loaded.tokenizer, recipe)
    else:
        text = calibration if recipe.calibrated else None
    ledger = convert.quantize(
        loaded.model,
        recipe,
        progress=progress,
        calibration=text,
        work=unfinished() if resume else None,
        identity=loaded.checkpoint.digest if resume else None,
        stamp=loaded.checkpoint.stamp if resume else None,
    )
    seconds = time.perf_counter() - began
    return Prepared(replace(loaded, recipe=recipe, ledger=ledger), recipe, ledger, text, seconds)


def prepare(
    checkpoint: Checkpoint,
    recipe: Recipe | None,
    *,
    device: str = "cpu",
    tokens: int = 1,
    window: int = 1,
    check_finite: bool = True,
    calibration: CalibrationText | Calibration = PACKAGED,
    progress: Progress | None = None,
) -> Prepared:
    """Load `checkpoint` and apply `recipe` to it; with None, a saved quantized model keeps its own recipe,
    and any other model is fp32.

    Raise `TooLargeError`, `InputError` and `NotAppliedError` as `load` and `quantize` do; `InputError` for a
    recipe on a quantized model.
    """
    if recipe is not None and checkpoint.is_quantized:
        raise quantized_already(checkpoint)
    loaded = load(
        checkpoint,
        recipe,
        device=device,
        tokens=tokens,
        window=window,
        check_finite=check_finite,
        progress=progress,
    )
    if recipe is None:
        return as_it_is(loaded)
    return quantize(loaded, recipe, calibration=calibration, progress=progress)


def as_it_is(loaded: Loaded, label: str = "as loaded") -> Prepared:
    """Return `loaded` with its saved recipe and ledger, or, for an unchanged model, with a ledger named
    `label`."""
    from qcore.layers.inventory import as_it_is as untouched

    return Prepared(loaded, loaded.recipe or parse("fp32"), loaded.ledger or untouched(loaded.model, label))


@contextmanager
def saving(folder: Path | str, progress: Progress) -> Iterator[None]:
    """Report that a model is being saved to `folder`; convert an `OSError` of the disk to `InputError`."""
    progress(0, 0, f"saving to {folder}")
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error

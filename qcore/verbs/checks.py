"""Whether a run can be done at all, found out from headers and files alone, before anything is started.

The Python API, the command line and the pages call the same functions here, so that they accept and refuse
the same input in the same words. No weights are fetched: a hub model that is not here yet is checked by its
headers, and a default model that is not here yet is fetched by the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qcore.base.errors import InputError, UnavailableError
from qcore.base.progress import Progress
from qcore.formats.kv import KVFormat
from qcore.recipes.spec import BASELINE, RunSpec

if TYPE_CHECKING:
    from qcore.base.texts import Text
    from qcore.models import Checkpoint
    from qcore.recipes import Recipe
    from qcore.verbs.prepare import Finder


def check_run(spec: RunSpec, finder: Finder | None = None) -> tuple[RunSpec, Checkpoint | None]:
    """Return the comparison that `spec` stands for (see `beside_original`), checked, and the checkpoint of its
    model (None: a default model that the run will fetch).

    Raises `InputError` and `UnavailableError` as `beside_original` and `check` do.
    """
    from qcore.verbs.prepare import Finder

    finder = finder or Finder()
    settled = beside_original(spec, finder)
    return settled, check(settled, finder)


def check(spec: RunSpec, finder: Finder | None = None) -> Checkpoint | None:
    """Return the checkpoint of the model of `spec` if `spec` can be run, None for a default model that is not
    here yet.

    Raises `InputError` for a model, text, prompt file or skip pattern that cannot be used, or if no recipe
    can run; `UnavailableError` for a device or a hub that is not there. What only some recipes cannot do is
    left to their rows.
    """
    from qcore import planning
    from qcore.base import texts
    from qcore.evaluation.questions import load_questions
    from qcore.verbs.prepare import Finder, quantized_already

    finder = finder or Finder()
    check_device(spec.device)
    checkpoint = finder.headers(spec.model, spec.revision)
    if checkpoint is not None and checkpoint.is_quantized:
        raise quantized_already(checkpoint)
    text = texts.load_text(spec.text)
    if any(recipe.calibrated for recipe in spec.recipes):
        check_calibration(spec, text)
    if spec.generate:
        texts.load_prompts(spec.prompts)
    if spec.choices is not None:
        load_questions(spec.choices)
    if checkpoint is None:
        return None
    check_skips(checkpoint, spec.recipes)
    refusals = []
    for recipe in spec.recipes:
        loaded, applied = loaded_from(checkpoint, recipe, finder)
        check_kv(loaded, spec.kv_format)
        try:
            check_calibrated_here(applied, spec.device)
            planning.check_fits(
                loaded, applied, tokens=spec.prompt_tokens + spec.new_tokens, window=spec.window
            )
        except InputError as error:
            refusals.append(error)
    if len(refusals) == len(spec.recipes):
        raise refusals[0]
    return checkpoint


def check_model(
    model: str,
    revision: str | None = None,
    *,
    device: str = "cpu",
    kv: KVFormat | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Find `model`, which may be quantized, and return its checkpoint.

    Raises `InputError` or `UnavailableError` if it cannot be found, cannot keep a cache in the form `kv`, or
    cannot run on `device`.
    """
    from qcore.verbs.prepare import find

    check_device(device)
    checkpoint = find(model, revision, progress=progress)
    check_kv(checkpoint, kv)
    return checkpoint


def beside_original(spec: RunSpec, finder: Finder | None = None) -> RunSpec:
    """Return `spec` as it is; for a model that qcore has quantized, the comparison on the model that it was
    made from, with the quantized one as the last row.

    A model that does not record what it was made from is left to `check`. Raises `InputError` if the
    original is gone or no longer the same.
    """
    model, revision, recipes = lineup(spec.model, spec.revision, spec.recipes, finder)
    return spec if model == spec.model else replace(spec, model=model, revision=revision, recipes=recipes)


def lineup(
    model: str, revision: str | None, recipes: Sequence[Recipe], finder: Finder | None = None
) -> tuple[str, str | None, tuple[Recipe, ...]]:
    """Return the model, its revision and the recipes as they are; for a `model` that qcore has quantized, its
    original, that one's revision, and the recipes with the quantized model as the last one.

    A model that does not record what it was made from stays as it is. Raises `InputError` if the original is
    gone or no longer the same.
    """
    from qcore.library.saving import made_from
    from qcore.models.names import classify
    from qcore.recipes import SAVED, parse_row
    from qcore.verbs.prepare import Finder

    finder = finder or Finder()
    checkpoint = finder.headers(model, revision)
    origin = made_from(checkpoint.folder) if checkpoint is not None and checkpoint.is_quantized else None
    if origin is None:
        return model, revision, tuple(recipes)
    name = (origin["model"], origin["revision"])
    # a commit of the hub and a default model never change
    if classify(*name).kind in ("folder", "gguf") and finder(*name).digest != origin["digest"]:
        raise InputError(
            f"{model} was made from {origin['model']}, which holds other weights now. Quantize it again."
        )
    own = parse_row(SAVED + model)
    return lineup(*name, (*recipes, *([] if own in recipes else [own])), finder)


def loaded_from(
    checkpoint: Checkpoint, recipe: Recipe, finder: Finder | None = None
) -> tuple[Checkpoint, Recipe]:
    """Return the checkpoint that a row of a comparison on `checkpoint` loads, and the recipe that is applied
    to it: fp32 to a saved model.

    Raises `InputError` for a saved model that cannot be read, or that cannot have been made from
    `checkpoint`.
    """
    from qcore.recipes import Saved, parse
    from qcore.verbs.prepare import Finder

    if not isinstance(recipe.weights, Saved):
        return checkpoint, recipe
    saved = (finder or Finder())(recipe.weights.folder)
    ours, theirs = (each.config.get("vocab_size") for each in (checkpoint, saved))
    if ours != theirs:
        raise InputError(
            f"{saved.name} has a vocabulary of {theirs} tokens and {checkpoint.name} one of {ours}, so it was "
            "not made from it. Only models that were made from the same model can be compared with it."
        )
    return saved, parse(BASELINE)


def check_calibrated_here(recipe: Recipe, device: str) -> None:
    """Raise `InputError` for a recipe that reads calibration text on a `device` other than the CPU."""
    from qcore.quantization.convert import check_device_of

    check_device_of(recipe, device)


def check_skips(checkpoint: Checkpoint, recipes: tuple[Recipe, ...]) -> None:
    """Raise `InputError` for a skip pattern that matches no module of the checkpoint that has a matrix to
    quantize."""
    from qcore.layers.select import matches

    modules = [
        name.rpartition(".")[0] for name, tensor in checkpoint.tensors.items() if len(tensor.shape) > 1
    ]
    for pattern in dict.fromkeys(pattern for recipe in recipes for pattern in recipe.modules.skip):
        if not any(matches(module, pattern) for module in modules):
            raise InputError(
                f"The skip pattern {pattern!r} matches no module of {checkpoint.name}. Names look like {modules[-1]!r}."
            )


def check_kv(checkpoint: Checkpoint, kv: KVFormat | None) -> None:
    """Raise `InputError` if the architecture keeps no keys and values that the form `kv` could hold."""
    from qcore.formats.kv import check_config
    from qcore.models import meta_model

    if kv is not None:
        check_config(meta_model(checkpoint).config)


def check_calibration(spec: RunSpec, text: Text) -> None:
    """Raise `InputError` if the calibration text cannot be read or is the evaluation `text`; what they share
    is looked at in the run."""
    from qcore.quantization.calibration.text import calibration_text

    found = calibration_text(spec.calibration)
    if found.sha256 == text.sha256:
        raise InputError(
            f"The calibration text is the evaluation text ({text.name}). A model is not judged by what it was calibrated on; choose "
            "another text for one of them."
        )


def check_device(device: str) -> None:
    """Raise `InputError` for a device that torch does not know, `UnavailableError` for one that this machine
    does not have."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"Unknown device {device!r}; try cpu or cuda.") from error
    if kind == "cpu":
        return
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != kind:
        raise UnavailableError(f"The device {device!r} is not available on this machine; use cpu.")

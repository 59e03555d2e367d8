"""Whether a run can be done at all, found out from headers and files alone, before anything is started."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qcore.base.errors import InputError, UnavailableError
from qcore.formats.kv import Form
from qcore.recipes.spec import BASELINE, RunSpec

if TYPE_CHECKING:
    from qcore.models import Checkpoint
    from qcore.recipes import Recipe


def check(spec: RunSpec) -> Checkpoint:
    """Find out, before anything is started, whether `spec` can be run at all, from headers and files alone.

    Returns the model's checkpoint. Raises `InputError` for a model, text, prompt file or skip pattern that
    cannot be used, or if no recipe fits into memory; `UnavailableError` for a device or a hub that is not
    there. What only some recipes cannot do is left to their rows.
    """
    from qcore import library, planning
    from qcore.base import texts
    from qcore.evaluation.questions import load_questions
    from qcore.library.saving import made_from
    from qcore.recipes import SAVED

    check_device(spec.device)
    checkpoint = library.resolve(spec.model, spec.revision)
    if checkpoint.is_quantized:
        original = (made_from(checkpoint.folder) or {}).get("model", "ORIGINAL")
        raise InputError(
            f"{spec.model} is quantized already. Set it beside the original: compare {original} --recipes {BASELINE},{SAVED}{spec.model}"
        )
    text = texts.load_text(spec.text)
    if any(recipe.calibrated for recipe in spec.recipes):
        check_calibration(spec, text)
    if spec.generate:
        texts.load_prompts(spec.prompts)
    if spec.choices is not None:
        load_questions(spec.choices)
    check_skips(checkpoint, spec.recipes)
    refusals = []
    for recipe in spec.recipes:
        loaded, applied = loaded_from(checkpoint, recipe)
        check_kv(loaded, spec.kv_form)
        try:
            planning.check_fits(
                loaded, applied, tokens=spec.prompt_tokens + spec.new_tokens, window=spec.window
            )
        except InputError as error:
            refusals.append(error)
    if len(refusals) == len(spec.recipes):
        raise refusals[0]
    return checkpoint


def beside_original(spec: RunSpec) -> RunSpec:
    """`spec` as it is; for a model that qcore has quantized, the comparison on the model that it was made
    from, with it as the last row.

    A model that does not say what it was made from is left to `check`. Raises `InputError` if the original is
    gone or no longer the same.
    """
    from qcore import library
    from qcore.library.saving import made_from
    from qcore.recipes import SAVED, parse_row

    checkpoint = library.resolve(spec.model, spec.revision)
    origin = made_from(checkpoint.folder) if checkpoint.is_quantized else None
    if origin is None:
        return spec
    if library.resolve(origin["model"], origin["revision"]).digest != origin["digest"]:
        raise InputError(
            f"{spec.model} was made from {origin['model']}, which holds other weights now. Quantize it again."
        )
    row = parse_row(SAVED + spec.model)
    return beside_original(
        replace(spec, model=origin["model"], revision=origin["revision"], recipes=(*spec.recipes, row))
    )


def loaded_from(checkpoint: Checkpoint, recipe: Recipe) -> tuple[Checkpoint, Recipe]:
    """What a row of a comparison on `checkpoint` loads, and the recipe that is applied to it: none to a saved
    model, which is "fp32".

    Raises `InputError` for a saved model that cannot be read, or that cannot have been made from
    `checkpoint`.
    """
    from qcore import library
    from qcore.recipes import Saved, parse

    if not isinstance(recipe.weights, Saved):
        return checkpoint, recipe
    saved = library.resolve(recipe.weights.folder)
    ours, theirs = (each.config.get("vocab_size") for each in (checkpoint, saved))
    if ours != theirs:
        raise InputError(
            f"{saved.name} has a vocabulary of {theirs} tokens and {checkpoint.name} one of {ours}, so it was not made from it. Only what "
            "was made from a model can be set beside it."
        )
    return saved, parse(BASELINE)


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


def check_kv(checkpoint: Checkpoint, kv: Form | None) -> None:
    """Raise `InputError` if the architecture keeps no keys and values that the form `kv` could hold."""
    from qcore.formats.kv import check_config
    from qcore.models import skeleton

    if kv is not None:
        check_config(skeleton(checkpoint).config)


def check_calibration(spec: RunSpec, text) -> None:
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

"""`export`: write one model under one recipe into a folder for another project's code."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.library import exports
from qcore.library.exports import Target
from qcore.library.parameters import LoadedParameters, Parameters, outline
from qcore.library.saving import check_folder
from qcore.models import Checkpoint
from qcore.models.checkpoint import ONNX
from qcore.recipes import Recipe
from qcore.streaming.parameters import StreamedParameters
from qcore.streaming.quantizing import reason_against
from qcore.verbs import card
from qcore.verbs.checks import check_skips
from qcore.verbs.command_words import words_of
from qcore.verbs.prepare import PACKAGED, CalibrationText, check_apart, find, prepare


@dataclass(frozen=True)
class Possible:
    """An export that was checked: its target, model, and `own`, qcore's recipe that the model is quantized
    with (None: not quantized for it)."""

    target: Target
    checkpoint: Checkpoint
    recipe: Recipe | None
    own: Recipe | None

    @property
    def streams(self) -> bool:
        """Whether the weights go from file to file, without the model in memory."""
        if not self.target.streams or self.checkpoint.is_quantized:
            return False
        return self.own is None or reason_against(self.own) is None


def check(
    model: str | Checkpoint,
    recipe: Recipe | None,
    folder: Path,
    *,
    to: str,
    revision: str | None = None,
    overwrite: bool = False,
    calibration: CalibrationText = PACKAGED,
    progress: Progress | None = None,
) -> Possible:
    """Check an export from headers and small files.

    Raise `InputError` for an unknown target, a model or recipe that it cannot express, a folder that is not
    empty, or an unusable calibration text; `UnavailableError` if a package is missing or the hub does not
    answer.
    """
    target = exports.load(to)
    check_folder(folder, overwrite=overwrite)
    target.available()
    own = None if recipe is None else target.source(recipe)
    checkpoint = find(model, revision, progress=progress)
    if checkpoint.source == ONNX:
        raise InputError(f"{checkpoint.name} is an ONNX graph already. Export the model that it was made of.")
    if checkpoint.is_quantized and recipe is not None:
        raise InputError(
            f"{checkpoint.name} is quantized already: its own codes are exported. Leave out the recipe "
            f"{recipe.name}."
        )
    check_apart(checkpoint, folder)
    if own is not None:
        check_skips(checkpoint, (own,))
    target.check(checkpoint, recipe, outline(checkpoint, own))
    calibration.check(own)
    return Possible(target, checkpoint, recipe, own)


def run(
    model: str,
    recipe: Recipe | None,
    folder: Path,
    *,
    to: str = "onnx",
    revision: str | None = None,
    overwrite: bool = False,
    calibration: CalibrationText = PACKAGED,
    progress: Progress,
) -> dict:
    """Export `model` under `recipe` (None: unchanged, or the codes of a saved model) to `folder`, in the form
    of the target `to`, and return sizes and notes.

    Recipes that choose codes from each weight alone are written tensor by tensor; others quantize the model
    in memory first. Raise as `check` does, before anything is loaded.
    """
    folder = Path(folder)
    possible = check(
        model,
        recipe,
        folder,
        to=to,
        revision=revision,
        overwrite=overwrite,
        calibration=calibration,
        progress=progress,
    )
    with heavy_turn(progress):
        began = time.perf_counter()
        parameters: Parameters
        cautions: tuple[str, ...] = ()
        if possible.streams:
            parameters = StreamedParameters(possible.checkpoint, possible.own)
        else:
            made = prepare(possible.checkpoint, possible.own, calibration=calibration, progress=progress)
            parameters, cautions = LoadedParameters(made.loaded), made.cautions
        exported = possible.target.save(parameters, recipe, folder, overwrite=overwrite, progress=progress)
    text = calibration.options(possible.own)
    text.pop("calibration_minutes", None)
    words = words_of("export", model, folder, to=to, recipe=recipe, revision=revision, **text)
    notes = dict.fromkeys([*cautions, *exported.notes, *card.write(folder, possible.checkpoint, words)])
    return {
        "model": model,
        "to": to,
        "recipe": exported.recipe,
        "folder": str(folder),
        "files": list(exported.files),
        "stored_bytes": exported.stored_bytes,
        "bits_per_weight": exported.bits_per_weight,
        "notes": list(notes),
        "seconds": time.perf_counter() - began,
        "agreement": exported.agreement,
    }

"""`export`: write one model under one recipe into a folder with an ONNX graph."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from qcore import engines
from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.engines.onnx import writing
from qcore.library import onnx_folder
from qcore.library.saving import check_folder
from qcore.recipes import Recipe
from qcore.verbs.checks import check_skips
from qcore.verbs.prepare import PACKAGED, CalibrationText, check_apart, find, prepare


def run(
    model: str,
    recipe: Recipe | None,
    folder: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    calibration: CalibrationText = PACKAGED,
    progress: Progress,
) -> dict:
    """Export `model` under `recipe` (None: unchanged, as float32 or the codes of a saved model) to `folder`,
    and return its sizes and the deviation of its logits from PyTorch's.

    Raise `InputError`, before anything is loaded, for a recipe without an ONNX form, a folder that is not
    empty, or an unusable model; `UnavailableError` without the ONNX packages.
    """
    folder = Path(folder)
    check_folder(folder, overwrite=overwrite)
    engines.load("onnxruntime")
    own = None if recipe is None else writing.source(recipe)
    checkpoint = find(model, revision, progress=progress)
    if checkpoint.source == "onnx":
        raise InputError(f"{model} is an ONNX graph already.")
    if checkpoint.is_quantized and recipe is not None:
        raise InputError(
            f"{model} is quantized already: its own codes are exported. Leave out the recipe {recipe.name}."
        )
    check_apart(checkpoint, folder)
    if own is not None:
        check_skips(checkpoint, (own,))
    calibration.check(own)
    with heavy_turn(progress):
        began = time.perf_counter()
        made = prepare(checkpoint, own, calibration=calibration, progress=progress)
        chosen = recipe or made.recipe
        ledger, agreement = onnx_folder.save(
            made.loaded, chosen, folder, overwrite=overwrite, progress=progress
        )
    return {
        "model": model,
        "recipe": chosen.name,
        "folder": str(folder),
        "stored_bytes": ledger.stored_bytes,
        "bits_per_weight": ledger.bits_per_weight,
        "seconds": time.perf_counter() - began,
        "agreement": asdict(agreement),
    }

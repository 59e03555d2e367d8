"""`python -m qcore export`: one model, one recipe, one folder with an ONNX graph."""

import time
from dataclasses import asdict
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.recipes import Recipe
from qcore.recipes.spec import check_limits, check_minutes


def export_to(
    model: str,
    recipe: Recipe | None,
    folder: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    calibration: str | None = None,
    calibration_tokens: int = 16384,
    calibration_minutes: float | None = None,
    progress: Progress,
) -> dict:
    """Export `model` as `recipe` (None: as it is, float32 or the codes of a saved model) to `folder`, and say
    what it came to.

    Raises `InputError` before anything is loaded for a recipe without an ONNX form, a folder that holds
    something, or a model that cannot be used; `UnavailableError` without the packages of ONNX.
    """
    from qcore import engines, library, planning
    from qcore.engines.onnx import writing
    from qcore.library import onnx_folder
    from qcore.library.loading import Loaded
    from qcore.library.saving import check_folder
    from qcore.quantization import convert
    from qcore.quantization.calibration import load_calibration, unfinished
    from qcore.recipes import parse
    from qcore.verbs.checks import check_skips
    from qcore.verbs.single import waiting

    check_folder(folder, overwrite=overwrite)
    engines.load("onnxruntime")
    own = None if recipe is None else writing.source(recipe)
    check_limits(calibration_tokens=calibration_tokens)
    check_minutes(calibration_minutes)
    checkpoint = library.resolve(model, revision, progress=progress)
    if checkpoint.source == "onnx":
        raise InputError(f"{model} is an ONNX graph already.")
    if checkpoint.is_quantized and recipe is not None:
        raise InputError(f"{model} is quantized already: its own codes are exported. Leave out --recipe.")
    if folder.exists() and checkpoint.folder.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} holds the model itself. Choose another folder.")
    if own is not None:
        check_skips(checkpoint, (own,))
    with heavy_turn(waiting(progress)):
        began = time.perf_counter()
        if not checkpoint.is_quantized:
            planning.check_fits(checkpoint, own or parse("fp32"), tokens=1, window=1)
        loaded = library.load(checkpoint, progress=progress)
        if own is not None:
            text = None
            if own.calibrated:
                text = load_calibration(
                    calibration, loaded.tokenizer, tokens=calibration_tokens, minutes=calibration_minutes
                )
            ledger = convert.quantize(
                loaded.model,
                own,
                progress=progress,
                calibration=text,
                work=unfinished(),
                identity=checkpoint.digest,
            )
            loaded = Loaded(loaded.model, loaded.tokenizer, checkpoint, own, ledger)
        chosen = recipe or loaded.recipe or parse("fp32")
        ledger, agreement = onnx_folder.save(loaded, chosen, folder, overwrite=overwrite, progress=progress)
    return {
        "model": model,
        "recipe": chosen.name,
        "folder": str(folder),
        "stored_bytes": ledger.stored_bytes,
        "bits_per_weight": ledger.bits_per_weight,
        "seconds": time.perf_counter() - began,
        "agreement": asdict(agreement),
    }

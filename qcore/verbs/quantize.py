"""`quantize`: write one model under one recipe into a folder."""

from __future__ import annotations

import time
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.executor import Executor
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.library import safetensors
from qcore.recipes import Recipe
from qcore.recipes.ledger import Ledger
from qcore.streaming import quantizing as streaming
from qcore.verbs import card
from qcore.verbs.checks import check_device, check_skips
from qcore.verbs.command_words import words_of
from qcore.verbs.prepare import PACKAGED, CalibrationText, find_original, prepare, saving

HERE = Executor()


def run(
    model: str,
    recipe: Recipe,
    folder: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    calibration: CalibrationText = PACKAGED,
    device: str = "cpu",
    stream: bool = False,
    engine: Executor = HERE,
    progress: Progress,
) -> dict:
    """Apply `recipe` to `model` and save it in `folder`, which appears complete or not at all. With `stream`
    the model is never held in memory: each tensor goes from its file into a shard, and shards can be spread
    over the machines of an `engine`.

    After a kill the same call resumes at the block, or with `stream` at the shard, where it stopped.

    Raise `InputError`, before anything is loaded, if the recipe is another library's, if `folder` is not
    empty (`overwrite` allows a model saved there by qcore), or if the model is unusable or does not fit.
    """
    if not (stream or engine.is_local):
        raise InputError(
            "Only a streamed quantization can be spread over machines. Stream it, or leave out the engine."
        )
    if stream and device != "cpu":
        raise InputError("A streamed quantization runs on the CPU. Leave out the device, or do not stream.")
    engine.check()
    check_device(device)
    folder = Path(folder)
    safetensors.check_target(recipe, folder, overwrite=overwrite)
    if stream:
        streaming.check(recipe)
    checkpoint = find_original(model, revision, folder=folder, progress=progress)
    check_skips(checkpoint, (recipe,))
    calibration.check(recipe)
    with heavy_turn(progress):
        if stream:
            began = time.perf_counter()
            ledger = streaming.quantize(
                checkpoint, recipe, folder, overwrite=overwrite, progress=progress, engine=engine
            )
            words = words_of("quantize", model, folder, recipe=recipe, stream=True, revision=revision)
            notes = card.write(folder, checkpoint, words)
            return _saved(model, folder, ledger, time.perf_counter() - began, notes)
        made = prepare(checkpoint, recipe, device=device, calibration=calibration, progress=progress)
        with saving(folder, progress):
            safetensors.save(
                made.loaded.model,
                made.loaded.tokenizer,
                recipe,
                made.ledger,
                folder,
                overwrite=overwrite,
                origin=checkpoint.origin,
            )
    words = words_of(
        "quantize",
        model,
        folder,
        recipe=recipe,
        revision=revision,
        **({} if device == "cpu" else {"device": device}),
        **calibration.options(recipe),
    )
    notes = (*made.cautions, *card.write(folder, checkpoint, words))
    return _saved(model, folder, made.ledger, made.quantize_s, notes)


def _saved(
    model: str, folder: Path, ledger: Ledger, quantize_s: float | None, notes: tuple[str, ...]
) -> dict:
    return {
        "model": model,
        "recipe": ledger.recipe,
        "folder": str(folder),
        "stored_bytes": ledger.stored_bytes,
        "bits_per_weight": ledger.bits_per_weight,
        "coverage": ledger.coverage,
        "quantize_s": quantize_s,
        "notes": list(notes),
    }

"""`qat`: train one model in quantized form and save it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from qcore import library
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.library import Loaded, safetensors
from qcore.models import Checkpoint
from qcore.quantization.calibration import Calibration
from qcore.recipes import Recipe
from qcore.training import qat as training
from qcore.training.checkpoint import TrainingState
from qcore.training.loop import History
from qcore.training.qat import Qat
from qcore.verbs import made
from qcore.verbs.command_words import words_of
from qcore.verbs.prepare import find_original, load, quantize, saving


def run(
    model: str,
    recipe: Recipe,
    options: Qat,
    folder: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    compare: bool = False,
    progress: Progress,
    watch: Callable[[History], None] | None = None,
) -> dict:
    """Train `model` in the form of `recipe`, save it in `folder`, and return its size, loss curve and, with
    `compare`, its figures beside the original's.

    After a kill the same call resumes. Raise `InputError` for unusable input, before anything is loaded.
    """
    folder = Path(folder)
    training.check_recipe(recipe)
    safetensors.check_target(recipe, folder, overwrite=overwrite)
    checkpoint = find_original(model, revision, folder=folder, progress=progress)
    with heavy_turn(progress):
        began = time.perf_counter()
        trained, history, kept = train(
            checkpoint, recipe, options, device=device, progress=progress, watch=watch
        )
        if trained.ledger is None:
            raise ValueError("a trained model has a ledger")
        with saving(folder, progress):
            safetensors.save(
                trained.model,
                trained.tokenizer,
                recipe,
                trained.ledger,
                folder,
                overwrite=overwrite,
                origin=checkpoint.origin,
            )
        kept.remove()
        result = made.summary(
            model, folder, trained, began=began, recipe=recipe.name, history=history.record()
        )
        result |= made.compared(compare, checkpoint, folder, recipe, progress)
        words = words_of("qat", model, folder, options, recipe=recipe, revision=revision)
        return result | made.with_card(result, folder, checkpoint, words)


def train(
    checkpoint: Checkpoint,
    recipe: Recipe,
    options: Qat,
    *,
    device: str = "cpu",
    progress: Progress,
    watch: Callable[[History], None] | None = None,
) -> tuple[Loaded, History, TrainingState]:
    """Return the model of `checkpoint` trained in the form of `recipe`, its loss curve, and the resumable
    training state (remove it once the model is saved). Raise `InputError` and `RunError` as
    `qcore.training.qat.run` does."""
    teacher = load(checkpoint, device=device, tokens=options.window, window=options.window, progress=progress)

    def quantized(text: Calibration) -> Loaded:
        """Return the student, quantized on the CPU, where calibration runs."""
        # memory is checked above; a second check would count the teacher twice
        student = library.load(checkpoint, progress=progress)
        return quantize(student, recipe, calibration=text, progress=progress).loaded

    return training.run(teacher, recipe, options, quantized, progress, device=device, watch=watch)

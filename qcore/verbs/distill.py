"""`distill`: train a smaller student of one model and save it as an ordinary model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.library import plain
from qcore.library.saving import check_folder
from qcore.training import distill as training
from qcore.training.distill import Distill
from qcore.training.loop import History
from qcore.verbs import made
from qcore.verbs.command_words import words_of
from qcore.verbs.prepare import find_original, load, saving


def run(
    model: str,
    options: Distill,
    folder: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    compare: bool = False,
    progress: Progress,
    watch: Callable[[History], None] | None = None,
) -> dict:
    """Train a student of `model`, save it in `folder`, and return its size, layers, loss curve and, with
    `compare`, its figures beside the original's.

    After a kill the same call resumes. Raise `InputError` for unusable input.
    """
    folder = Path(folder)
    check_folder(folder, overwrite=overwrite)
    checkpoint = find_original(model, revision, folder=folder, progress=progress)
    with heavy_turn(progress):
        began = time.perf_counter()
        window = options.window
        teacher = load(checkpoint, device=device, tokens=window, window=window, progress=progress)
        student, record, kept = training.run(teacher, options, progress, device=device, watch=watch)
        with saving(folder, progress):
            plain.save(student.model, student.tokenizer, record, folder, overwrite=overwrite)
        kept.remove()
        about = {name: record[name] for name in ("kept_layers", "trained_seconds", "history")}
        result = made.summary(model, folder, student, began=began, **about)
        result |= made.compared(compare, checkpoint, folder, None, progress)
        words = words_of("distill", model, folder, options, revision=revision)
        return result | made.with_card(result, folder, checkpoint, words)

"""Write llama.cpp's importance matrix of a model from calibration text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.files import expanded
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.interop.gguf_names import Names
from qcore.models import Checkpoint, imatrix, meta_model
from qcore.models.imatrix import ImportanceMatrix
from qcore.quantization.calibration import load_calibration
from qcore.quantization.calibration.importance import compute, named
from qcore.verbs.checks import check_device
from qcore.verbs.prepare import PACKAGED, CalibrationText, find_original, load


@dataclass(frozen=True)
class Written:
    """The file at `path` lists the importance of `weights` weights over `tokens` tokens of `text`."""

    path: Path
    weights: int
    tokens: int
    text: str


def run(
    model: str | Path | Checkpoint,
    path: Path,
    *,
    revision: str | None = None,
    calibration: CalibrationText = PACKAGED,
    device: str = "cpu",
    progress: Progress,
) -> Written:
    """Compute the importance matrix of `model` on `device` and write it to `path`. Raise `InputError` for an
    unusable model, text or path, or an architecture that GGUF does not know, and `UnavailableError` for a
    device that is not here."""
    check_device(device)
    path = expanded(path)
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {path.parent} does not exist.")
    if path.exists():
        imatrix.read(path)  # raises: only an importance matrix is replaced
    checkpoint = find_original(model, revision, progress=progress)
    Names(meta_model(checkpoint).config)  # an architecture that GGUF does not know
    with heavy_turn(progress):
        loaded = load(checkpoint, device=device, progress=progress)
        text = load_calibration(calibration.source, loaded.tokenizer, tokens=calibration.tokens)
        values, counts = named(loaded.model, *compute(loaded.model, text, progress))
    count, window = text.ids.shape
    found = ImportanceMatrix(values, count * window, (text.name,))
    try:
        imatrix.write(path, found, counts, window)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
    return Written(path, len(values), count * window, text.name)

"""Windows for training, and held-out windows for validation.

Without a separate text, validation takes the last windows of the training text, which training then does not
use. With one, the two may not share a run of 50 tokens (see `qcore.quantization.calibration.text`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.base.texts import tokenize
from qcore.quantization.calibration.text import Calibration, calibration_text, check_overlap

if TYPE_CHECKING:
    import torch

MOST_TOKENS = 20_000_000  # of a text that windows are spread over
JUDGED = 2048  # tokens of validation


@dataclass(frozen=True)
class Texts:
    """`source` is the training text, `train` its windows (windows, T) and `held_out` (windows, T) the
    validation windows, in token ids; `record` is the training text's (see `Calibration.record`), with the
    fingerprints of both: a trained model may not be evaluated on either."""

    source: Calibration
    held_out: torch.Tensor
    record: dict

    @property
    def train(self) -> torch.Tensor:
        """See the class."""
        return self.source.ids


def load(
    source: str | Path | None,
    validation: str | Path | None,
    tokenizer,
    *,
    tokens: int,
    window: int,
    judged: int = JUDGED,
) -> Texts:
    """Return `tokens` of the text `source` (a UTF-8 file; None is the packaged calibration text) in windows
    of `window`, evenly spaced, and `judged` tokens of the text `validation` (None: from the end of `source`).

    Raise `InputError` if a text cannot be used, is too short for two windows, or overlaps the other.
    """
    text = calibration_text(source)
    ids = tokenize(text, tokenizer, limit=MOST_TOKENS)
    other = None if validation is None else calibration_text(validation)
    available = len(ids) // window
    held = 0 if other is not None else min(-(-judged // window), max(1, available // 5))
    if available - held < 1:
        raise InputError(
            f"{text.name} has {len(ids):,} tokens, but training needs at least "
            f"{(1 + held) * window:,}: windows of {window}, some "
            "of them for validation. Give a longer text or a smaller window."
        )
    windows = ids[: available * window].view(available, window)
    part = windows[: available - held]
    count = min(-(-tokens // window), len(part))
    train = Calibration(
        text.name, text.sha256, part[[len(part) * i // count for i in range(count)]], line_ends=text.line_ends
    )
    if other is None:
        held_out = Calibration(text.name, text.sha256, windows[available - held :])
    else:
        theirs = tokenize(other, tokenizer, limit=MOST_TOKENS)
        size = min(window, len(theirs))
        held_out = Calibration(
            other.name, other.sha256, theirs[: max(1, min(judged, len(theirs)) // size) * size].view(-1, size)
        )
        check_overlap(train, other.name, other.sha256, held_out.ids.flatten())
    record = train.record
    record["fingerprint"] = sorted({*record["fingerprint"], *held_out.record["fingerprint"]})
    record["validation"] = {"name": held_out.name, "sha256": held_out.sha256, "tokens": held_out.ids.numel()}
    return Texts(train, held_out.ids, record)

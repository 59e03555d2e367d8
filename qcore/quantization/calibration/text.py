"""Calibration text: what it is, which windows of it are read, and that none of it is what a model is judged
by.

Methods that look at activations choose codes that are good for the text they saw. If that is the text a model
is measured on, the figure is worth nothing, so the two are compared token by token: a run of 50 tokens that
both contain is refused.

The default needs no network: the prose in the docstrings of Python's standard library. It shares no paragraph
with the default evaluation text, which is the language reference.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.base.texts import LARGEST_TEXT, Text, load_text, tokenize

if TYPE_CHECKING:
    import torch

WINDOW, TOKENS = 512, 16384
OVERLAP = 50  # tokens in a row
SAMPLED = 8  # one in so many runs is remembered in a record, so that a saved model can be checked later
_LONGEST = 400_000  # tokens of a text that windows are spread over
_PACKAGES = (
    "",
    "asyncio",
    "collections",
    "concurrent/futures",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml/dom",
    "xml/sax",
    "wsgiref",
)
_FEWEST_WORDS = 12


@dataclass(frozen=True)
class Calibration:
    """`ids` (windows, window) of the text called `name`. `minutes` is what a learned method may take for the
    whole model."""

    name: str
    sha256: str
    ids: torch.Tensor
    minutes: float | None = None

    def part(self, tokens: int) -> Calibration:
        """Only as many of the windows, evenly spread, as `tokens` takes (at least one)."""
        count, window = self.ids.shape
        wanted = max(1, min(count, -(-tokens // window)))
        return replace(self, ids=self.ids[[count * i // wanted for i in range(wanted)]])

    @property
    def record(self) -> dict:
        """JSON-ready: what was read, and the fingerprint that `check_record` compares other texts with."""
        windows, window = self.ids.shape
        return {
            "text": {"name": self.name, "sha256": self.sha256},
            "tokens": windows * window,
            "window": window,
            "minutes": self.minutes,
            "fingerprint": sorted(mark for mark in _marks(self.ids) if int(mark, 16) % SAMPLED == 0),
        }


def load_calibration(
    source: str | Path | None,
    tokenizer,
    *,
    tokens: int = TOKENS,
    window: int = WINDOW,
    minutes: float | None = None,
) -> Calibration:
    """Windows of `window` tokens, `tokens` in all, evenly spread over the text `source` (a UTF-8 file; None
    is the packaged one).

    A shorter text gives fewer windows, and one that is shorter than a window gives one short window. Raises
    `InputError` for a file that cannot be used.
    """
    text = calibration_text(source)
    ids = tokenize(text, tokenizer, limit=_LONGEST)
    window = min(window, len(ids))
    available = len(ids) // window
    count = max(1, min(-(-tokens // window), available))
    starts = [available * i // count * window for i in range(count)]
    import torch

    return Calibration(
        text.name, text.sha256, torch.stack([ids[start : start + window] for start in starts]), minutes
    )


def calibration_text(source: str | Path | None) -> Text:
    """The text called `source`; None is the packaged one."""
    if source is not None:
        return load_text(source)
    content = docstrings()
    return Text(
        "docstrings of Python's standard library",
        content,
        hashlib.sha256(content.encode("utf-8")).hexdigest(),
    )


def check_overlap(calibration: Calibration, name: str, sha256: str, ids: torch.Tensor) -> None:
    """Raise `InputError` if the evaluation text called `name`, of which the tokens `ids` (T,) are scored, has
    been calibrated on."""
    if sha256 == calibration.sha256:
        raise _overlaps(calibration.name, name, "they are the same text")
    if _marks(calibration.ids).isdisjoint(_marks(ids.unsqueeze(0))):
        return
    raise _overlaps(calibration.name, name, f"{OVERLAP} tokens in a row or more stand in both")


def check_record(record: dict, name: str, sha256: str, ids: torch.Tensor) -> None:
    """The same for a saved model, from the `Calibration.record` it was saved with: finds shared runs of a
    hundred tokens or so."""
    calibrated = record["text"]
    if sha256 == calibrated["sha256"]:
        raise _overlaps(calibrated["name"], name, "they are the same text")
    if not _marks(ids.unsqueeze(0)).isdisjoint(record["fingerprint"]):
        raise _overlaps(calibrated["name"], name, f"{OVERLAP} tokens in a row or more stand in both")


def _overlaps(calibration: str, evaluation: str, why: str) -> InputError:
    return InputError(
        f"The calibration text ({calibration}) overlaps the evaluation text ({evaluation}): {why}. A model is not judged by what it was "
        "calibrated on; choose another text for one of them."
    )


def _marks(ids: torch.Tensor) -> set[str]:
    """A hash of each run of `OVERLAP` tokens in the rows of `ids` (R, T)."""
    import numpy

    if ids.shape[1] < OVERLAP:
        return set()
    runs = numpy.lib.stride_tricks.sliding_window_view(
        ids.cpu().numpy().astype("<i4"), OVERLAP, axis=1
    ).reshape(-1, OVERLAP)
    return {hashlib.blake2b(run.tobytes(), digest_size=8).hexdigest() for run in runs}


def docstrings() -> str:
    """Prose paragraphs of the standard library's docstrings, files in alphabetic order, each paragraph once,
    joined by blank lines."""
    library = Path(sysconfig.get_path("stdlib"))
    paragraphs: dict[str, None] = {}
    for package in _PACKAGES:
        for path in sorted((library / package).glob("*.py")):
            if path.stat().st_size < LARGEST_TEXT:
                paragraphs |= dict.fromkeys(_prose(path.read_text(encoding="utf-8", errors="replace")))
    return "\n\n".join(paragraphs) + "\n"


def _prose(source: str) -> Iterable[str]:
    for quoted in re.findall(r'"""(.*?)"""', source, re.DOTALL):
        if len(quoted) > 200:
            for block in re.split(r"\n\s*\n", quoted):
                paragraph = " ".join(block.split())
                if _reads_like_prose(paragraph, block):
                    yield paragraph


def _reads_like_prose(paragraph: str, block: str) -> bool:
    if any(mark in block for mark in (">>>", "::", "\\", "|", "  -", " = ", "->")):
        return False
    return (
        paragraph[:1].isupper()
        and len(paragraph.split()) >= _FEWEST_WORDS
        and paragraph.endswith((".", ".)"))
    )

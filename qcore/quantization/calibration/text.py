"""Calibration text: its source, its windows, and the check that it does not overlap the evaluation text.

Methods that use activations choose codes that suit the calibration text. A measurement on the same text would
be worthless, so the two texts are compared token by token: a run of 50 tokens in both is an error.

The default text needs no network: the prose in the docstrings of Python's standard library. It shares no
paragraph with the default evaluation text, which is the language reference.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.base.text_files import digest_record
from qcore.base.texts import LARGEST_TEXT, Text, load_text, tokenize

if TYPE_CHECKING:
    import torch

    from qcore.models.imatrix import ImportanceMatrix

WINDOW, TOKENS = 512, 16384
FEWEST = 256  # tokens, below which second moments say little about the inputs of a layer
OVERLAP = 50  # tokens in a row
SAMPLED = 8  # one in 8 runs is stored in a record, so that a saved model can be checked later
_LONGEST = 400_000  # tokens: windows are spread over at most this much of a text
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
DOCSTRINGS = "docstrings of Python's standard library"  # the name of the packaged text


@dataclass(frozen=True)
class Calibration:
    """Token `ids` (windows, window) of the text called `name`. `minutes` limits the time that a learned
    method takes for the whole model; None is the method's default number of steps. `importance` is that of a
    file, for the method imatrix, which then reads no tokens. `line_ends` counts the line ends of the text
    that were read as line feeds."""

    name: str
    sha256: str
    ids: torch.Tensor
    minutes: float | None = None
    importance: ImportanceMatrix | None = None
    line_ends: Mapping[str, int] = field(default_factory=dict)

    def part(self, tokens: int) -> Calibration:
        """Return evenly spread windows with about `tokens` tokens in all, at least one window."""
        count, window = self.ids.shape
        wanted = max(1, min(count, -(-tokens // window)))
        return replace(self, ids=self.ids[[count * i // wanted for i in range(wanted)]])

    @property
    def caution(self) -> str | None:
        """A sentence if the text is too short or too uniform to calibrate on; None if it is neither, or if
        an importance matrix takes its place."""
        tokens = self.ids.numel()
        if not tokens:
            return None
        most = int(self.ids.unique(return_counts=True)[1].max())
        if tokens < FEWEST:
            what = (
                f"has {tokens} tokens: too short to calibrate on, because layers have more inputs than that"
            )
        elif most > tokens / 2:
            what = f"repeats one token {most} times in {tokens}: too uniform to calibrate on"
        else:
            return None
        return f"The calibration text {self.name} {what}. Use a text like those that the model will read."

    @property
    def record(self) -> dict:
        """The text, its windows, the fingerprint for `check_record`, and a caution if there is one,
        JSON-ready."""
        windows, window = self.ids.shape
        return {
            "text": digest_record(self.name, self.sha256, self.line_ends),
            "tokens": windows * window,
            "window": window,
            "minutes": self.minutes,
            "fingerprint": sorted(mark for mark in _marks(self.ids) if int(mark, 16) % SAMPLED == 0),
            **({} if self.caution is None else {"caution": self.caution}),
            **({} if self.importance is None else {"imatrix": self.importance.record}),
        }


def load_calibration(
    source: str | Path | None,
    tokenizer,
    *,
    tokens: int = TOKENS,
    window: int = WINDOW,
    minutes: float | None = None,
) -> Calibration:
    """Return windows of `window` tokens, `tokens` in all, evenly spread over the text `source` (a UTF-8 file;
    None is the default text).

    A shorter text gives fewer windows; a text shorter than one window gives one short window. Raise
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
        text.name,
        text.sha256,
        torch.stack([ids[start : start + window] for start in starts]),
        minutes,
        line_ends=text.line_ends,
    )


def calibration_text(source: str | Path | None) -> Text:
    """Return the text in the file `source`; None is the default text."""
    if source is not None:
        return load_text(source)
    content = docstrings()
    return Text(DOCSTRINGS, content, hashlib.sha256(content.encode("utf-8")).hexdigest())


def check_overlap(calibration: Calibration, name: str, sha256: str, ids: torch.Tensor) -> None:
    """Raise `InputError` if the scored tokens `ids` (T,) of the evaluation text called `name` overlap the
    calibration text."""
    if sha256 == calibration.sha256:
        raise _overlaps(calibration.name, name, "they are the same text")
    if _marks(calibration.ids).isdisjoint(_marks(ids.unsqueeze(0))):
        return
    raise _overlaps(calibration.name, name, f"both contain the same run of at least {OVERLAP} tokens")


def check_record(record: dict, name: str, sha256: str, ids: torch.Tensor) -> None:
    """Do the same for a saved model, from its `Calibration.record`. The record samples one run in 8, so only
    shared runs of about a hundred tokens are found."""
    calibrated = record["text"]
    if sha256 == calibrated["sha256"]:
        raise _overlaps(calibrated["name"], name, "they are the same text")
    if not _marks(ids.unsqueeze(0)).isdisjoint(record["fingerprint"]):
        raise _overlaps(calibrated["name"], name, f"both contain the same run of at least {OVERLAP} tokens")


def _overlaps(calibration: str, evaluation: str, why: str) -> InputError:
    return InputError(
        f"The calibration text ({calibration}) overlaps the evaluation text ({evaluation}): {why}. "
        "A model must not be evaluated on its calibration text; choose another text for one of them."
    )


def _marks(ids: torch.Tensor) -> set[str]:
    """Return a hash per run of `OVERLAP` tokens in the rows of `ids` (R, T)."""
    import numpy

    if ids.shape[1] < OVERLAP:
        return set()
    runs = numpy.lib.stride_tricks.sliding_window_view(
        ids.cpu().numpy().astype("<i4"), OVERLAP, axis=1
    ).reshape(-1, OVERLAP)
    return {hashlib.blake2b(run.tobytes(), digest_size=8).hexdigest() for run in runs}


def docstrings() -> str:
    """Return the prose paragraphs of the standard library's docstrings, each once, files in alphabetical
    order, joined by blank lines."""
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

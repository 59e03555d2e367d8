"""Numbers with units, as `qcore.results.report` writes them, and texts of strangers shown exactly as they
are."""

import re
import unicodedata
from datetime import datetime

from qcore.results.report import human_bytes as size
from qcore.results.report import human_number as digits
from qcore.results.report import human_percent as percent
from qcore.results.report import human_seconds as seconds

__all__ = ["clock", "digits", "percent", "rough", "seconds", "size", "verbatim", "visible", "shielded"]

NBSP = "\N{NO-BREAK SPACE}"
# the places inside of :emoji:, arrows and dashes, web and mail addresses
_REPLACED = re.compile(
    r"(?<=:)(?=[\w/+-]+:)|(?<=<)(?=[-=])|(?<=-)(?=[->])|(?<=[>~])(?==)|(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)(?=\w)",
    re.I,
)


def rough(value: float) -> str:
    """A duration that keeps changing: whole seconds."""
    return f"{value:.0f} s" if value < 59.5 else seconds(value)


def clock(value: float | str | None) -> str:
    """A moment, local time, "25 Nov 14:05"; takes POSIX seconds or an ISO 8601 string."""
    if value is None:
        return "–"
    moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value)
    return f"{moment.astimezone():%d %b %H:%M}".lstrip("0")


def verbatim(text: str) -> str:
    """Markdown that shows `text` as it is: nothing in it is a link, an image, a formula, a colour or an
    emoji, line breaks and leading blanks survive, and characters that cannot be seen appear as ⟨U+202E⟩."""
    lines = visible(text).split("\n")
    return "  \n".join(_line(line) for line in lines)


def visible(text: str) -> str:
    """`text` with control, direction-changing and lone surrogate characters spelled out as ⟨U+XXXX⟩. Line
    breaks stay, a tab is four blanks."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "".join(
        c
        if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else f"⟨U+{ord(c):04X}⟩"
        for c in text
    )


def shielded(text: str) -> str:
    """`text`, without line breaks, as Markdown in which nothing has a meaning."""
    # Streamlit makes emoji, typographic symbols and links out of text after Markdown's own escapes are
    # resolved: a word joiner, which cannot be seen, keeps it from recognizing them.
    text = re.sub(_REPLACED, "\N{WORD JOINER}", text)
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", re.sub(r" (?= )", NBSP, text))


def _line(line: str) -> str:
    body = line.lstrip(" ")
    return NBSP * (len(line) - len(body)) + shielded(body) or NBSP

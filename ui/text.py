"""Format numbers with units as `qcore.results.report` does, and show untrusted text literally."""

import re
import unicodedata
from datetime import datetime

from qcore.results.report import human_bytes as size
from qcore.results.report import human_number as digits
from qcore.results.report import human_percent as percent
from qcore.results.report import human_seconds as seconds

__all__ = ["clock", "digits", "percent", "rough", "seconds", "size", "verbatim", "visible", "shielded"]

NBSP = "\N{NO-BREAK SPACE}"
# positions inside :emoji:, arrows and dashes, web and mail addresses
_REPLACED = re.compile(
    r"(?<=:)(?=[\w/+-]+:)|(?<=<)(?=[-=])|(?<=-)(?=[->])|(?<=[>~])(?==)|(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)(?=\w)",
    re.I,
)


def rough(value: float) -> str:
    """Return a duration in whole seconds, for texts that are redrawn all the time."""
    return f"{value:.0f} s" if value < 59.5 else seconds(value)


def clock(value: float | str | None) -> str:
    """Return a moment in local time, "25 Nov 14:05". `value`: POSIX seconds or an ISO 8601 string."""
    if value is None:
        return "–"
    moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value)
    return f"{moment.astimezone():%d %b %H:%M}".lstrip("0")


def verbatim(text: str) -> str:
    """Return Markdown that shows `text` literally: links, images, formulas, colors and emoji are not
    interpreted, line breaks and leading blanks are kept, invisible characters appear as ⟨U+202E⟩."""
    lines = visible(text).split("\n")
    return "  \n".join(_line(line) for line in lines)


def visible(text: str) -> str:
    """Return `text` with control, bidirectional and lone surrogate characters spelled out as ⟨U+XXXX⟩. Line
    breaks are kept, a tab becomes four blanks."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "".join(
        c
        if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else f"⟨U+{ord(c):04X}⟩"
        for c in text
    )


def shielded(text: str) -> str:
    """Return `text`, which has no line breaks, as Markdown with all markup escaped."""
    # Streamlit replaces emoji codes, typographic symbols and links after Markdown's escapes are resolved.
    # An invisible word joiner prevents that.
    text = re.sub(_REPLACED, "\N{WORD JOINER}", text)
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", re.sub(r" (?= )", NBSP, text))


def _line(line: str) -> str:
    body = line.lstrip(" ")
    return NBSP * (len(line) - len(body)) + shielded(body) or NBSP

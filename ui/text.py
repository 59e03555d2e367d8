"""Format numbers with units as `qcore.results.report` does, and show untrusted text literally:

verbatim    Markdown of a text of several lines     st.markdown, st.error, …
shielded    Markdown of a name                      the same, and labels of buttons, links and metrics
one_line    plain                                   options of select boxes
cell        plain, and no formula                   cells of st.dataframe
visible     plain, several lines                    st.code
drawn       the HTML that Plotly reads              labels in figures
"""

import html
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime

from qcore.results.report import escape_cell
from qcore.results.report import human_bytes as size
from qcore.results.report import human_number as digits
from qcore.results.report import human_percent as percent
from qcore.results.report import human_seconds as seconds
from ui.redaction import redacted

__all__ = [
    "cell",
    "clock",
    "digits",
    "drawn",
    "drawn_labels",
    "one_line",
    "percent",
    "rough",
    "seconds",
    "shielded",
    "size",
    "verbatim",
    "visible",
]

LONGEST = 100_000  # characters per text: all visitors share the processor time and memory of the server
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
    """Return `text` with control, bidirectional and lone surrogate characters spelled out as ⟨U+XXXX⟩, and
    without paths of a public server. Line breaks are kept, a tab becomes four blanks, and what follows the
    first `LONGEST` characters is cut."""
    length, text = len(text), redacted(text[: 2 * LONGEST])  # a path that is cut is not recognized
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} … ({length - LONGEST:,} more characters)"
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    hidden = {
        ord(c): f"⟨U+{ord(c):04X}⟩"
        for c in set(text)
        if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }
    return text.translate(hidden)


def one_line(text: str) -> str:
    """Return `text` as `visible` does, with line breaks spelled out too: for lists and tables, which do not
    read Markdown."""
    return visible(text).replace("\n", "⟨U+000A⟩")


def cell(text: str) -> str:
    """Return `text` on one line for a cell of a table, which the browser saves as CSV without an escape."""
    return escape_cell(one_line(text))


def drawn(text: str) -> str:
    """Return `text` on one line for a figure, which reads some HTML."""
    return html.escape(one_line(text), quote=False)


def drawn_labels(rows: Sequence[dict]) -> list[dict]:
    """Return `rows` with their "label" as `drawn`."""
    return [{**row, "label": drawn(row["label"])} for row in rows]


def shielded(text: str) -> str:
    """Return `text` on one line as Markdown with all markup escaped."""
    return _escaped(one_line(text))


def _escaped(text: str) -> str:
    # Streamlit replaces emoji codes, typographic symbols and links after Markdown's escapes are resolved.
    # An invisible word joiner prevents that.
    text = re.sub(_REPLACED, "\N{WORD JOINER}", text)
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", re.sub(r" (?= )", NBSP, text))


def _line(line: str) -> str:
    body = line.lstrip(" ")
    return NBSP * (len(line) - len(body)) + _escaped(body) or NBSP

"""Compare two texts word by word, and mark the words of the second that differ from the first."""

import re
from difflib import SequenceMatcher
from itertools import groupby

from ui.text import NBSP, shielded, visible

_PIECES = re.compile(r"\n|[^\S\n]+|\w+|[^\w\s]")
LONGEST = 20_000  # characters compared per text; the rest is shown unmarked


def pieces(text: str) -> list[str]:
    """Split `text` into words, blanks, line breaks and punctuation marks. Joined, they give `text`."""
    return _PIECES.findall(text)


def spans(base: str, other: str) -> list[tuple[str, bool]]:
    """Split `other` into (text, whether it differs from `base`)."""
    a, b = pieces(base[:LONGEST]), pieces(other[:LONGEST])
    found: list[tuple[str, bool]] = []
    for tag, _, _, low, high in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if high > low:
            found.append(("".join(b[low:high]), tag != "equal"))
    for i in range(1, len(found) - 1):  # a blank between two differing words counts as differing
        text, differs = found[i]
        if not differs and not text.strip(" ") and found[i - 1][1] and found[i + 1][1]:
            found[i] = (text, True)
    found = _merged(found)
    if len(other) > LONGEST:
        found.append((other[LONGEST:], False))
    return found


def _merged(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    return [
        ("".join(text for text, _ in group), differs)
        for differs, group in groupby(parts, key=lambda part: part[1])
    ]


def marked(base: str, other: str) -> str:
    """Return Markdown that shows `other` literally, with the differences from `base` on orange."""
    lines: list[list[tuple[str, bool]]] = [[]]
    for text, differs in spans(visible(base), visible(other)):
        first, *rest = text.split("\n")
        lines[-1].append((first, differs))
        lines += [[(line, differs)] for line in rest]
    return "  \n".join(_line(line) for line in lines)


def _line(parts: list[tuple[str, bool]]) -> str:
    text = "".join(part for part, _ in parts)
    indent = len(text) - len(text.lstrip(" "))
    shown, at = NBSP * indent, 0
    for part, differs in parts:
        visible_part = part[max(0, indent - at) :]
        at += len(part)
        inner = visible_part.strip(" ")
        if differs and inner:  # a mark must begin and end with a visible character
            before, after = visible_part.split(inner, 1)
            shown += f"{before}:orange-background[{shielded(inner)}]{after}"
        else:
            shown += shielded(visible_part)
    return shown or NBSP

"""Compare two texts word by word, and mark the words of the second that differ from the first.

The words that stay are a longest common subsequence. Its table has a bounded number of cells, whatever the
texts repeat: difflib takes cubic time for two answers that repeat one word.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from ui.text import NBSP, shielded, visible

_PIECES = re.compile(r"\n|[^\S\n]+|\w+|[^\w\s]")
LONGEST = 20_000  # characters compared per text; the rest is shown unmarked
MOST = 2000  # pieces compared per text, between equal beginnings and ends


def pieces(text: str) -> list[str]:
    """Split `text` into words, blanks, line breaks and punctuation marks. Joined, they give `text`."""
    return _PIECES.findall(text)


def spans(base: str, other: str) -> list[tuple[str, bool]]:
    """Split `other` into (text, whether it differs from `base`)."""
    a, b = pieces(base[:LONGEST]), pieces(other[:LONGEST])
    found = _merged([(piece, not kept) for piece, kept in zip(b, kept_of(a, b), strict=True)])
    for i in range(1, len(found) - 1):  # a blank between two differing words counts as differing
        text, differs = found[i]
        if not differs and not text.strip(" ") and found[i - 1][1] and found[i + 1][1]:
            found[i] = (text, True)
    found = _merged(found)
    if len(other) > LONGEST:
        found.append((other[LONGEST:], False))
    return found


def kept_of(a: Sequence[str], b: Sequence[str]) -> list[bool]:
    """Return for each piece of `b` whether it belongs to a longest common subsequence with `a`. Pieces beyond
    the bound count as kept."""
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest = min(len(a), len(b)) - start
    end = next((i for i in range(rest) if a[-1 - i] != b[-1 - i]), rest)
    x, y = a[start : len(a) - end][:MOST], b[start : len(b) - end][:MOST]
    kept = [True] * len(b)
    kept[start : start + len(y)] = [False] * len(y)
    for j in _common(x, y):
        kept[start + j] = True
    return kept


def _common(x: Sequence[str], y: Sequence[str]) -> Iterator[int]:
    """Yield the positions in `y` of a longest common subsequence with `x`."""
    numbers = {piece: number for number, piece in enumerate({*x, *y})}
    ids = np.array([numbers[piece] for piece in y], dtype=np.int32)
    lengths = np.zeros((len(x) + 1, len(y) + 1), dtype=np.int16)  # [i, j]: of x[i:] and y[j:]
    for i in range(len(x) - 1, -1, -1):
        below = lengths[i + 1]
        best = np.maximum(below[:-1], below[1:] + (ids == numbers[x[i]]))
        lengths[i, :-1] = np.maximum.accumulate(best[::-1])[::-1]
    i = j = 0
    while i < len(x) and j < len(y):
        if x[i] == y[j]:
            yield j
            i, j = i + 1, j + 1
        elif lengths[i + 1, j] >= lengths[i, j + 1]:
            i += 1
        else:
            j += 1


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

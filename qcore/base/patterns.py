"""Regular expressions of untrusted files, matched in a bounded number of steps.

Python's `re` tries one way through an expression after another, which takes exponential time for some. Here
all ways advance together: the positions of a name that a part of the expression can reach are the bits of one
integer. A set of characters shifts the bits, and its repetition carries them through a run of such characters
by one addition (Parabix's MatchStar: Cameron et al., "Bitwise Data Parallelism in Regular Expression
Matching", 2014). What remains costly are nested repetitions of longer parts, so steps are counted.

Back references, conditions, atomic groups, possessive repetitions and inline flags have no such form and are
refused. The syntax is parsed by Python's own parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from qcore.base.errors import InputError

LONGEST = 1024  # characters of a pattern, and of a name
DEEPEST = 16  # levels of groups
MOST_STEPS = 20_000  # of one match; a usual pattern takes fewer than 100
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda char: char.isalnum() or char == "_",
}
_REPEATS, _SINGLE = ("MAX_REPEAT", "MIN_REPEAT"), ("LITERAL", "NOT_LITERAL", "ANY", "IN")


def matches(pattern: str, name: str) -> bool:
    """Return whether the regular expression `pattern` matches at the start of `name`, as `re.match` does.

    Raise `InputError` for an invalid pattern, one that is too long or takes too many steps, and one with a
    feature that cannot be matched in bounded time.
    """
    parsed = _parsed(pattern)
    if len(name) > LONGEST:
        raise InputError(f"Names of modules are limited to {LONGEST} characters; one has {len(name)}.")
    return _Match(pattern, name).after(parsed, 1) != 0


def check(pattern: str) -> None:
    """Raise `InputError` for a pattern that `matches` refuses whatever the name."""
    _parsed(pattern)


@lru_cache(maxsize=256)
def _parsed(pattern: str) -> tuple[Any, ...]:
    if len(pattern) > LONGEST:
        raise InputError(
            f"Patterns are limited to {LONGEST} characters; the one that begins with {pattern[:60]!r} has "
            f"{len(pattern)}."
        )
    try:
        found = re._parser.parse(pattern)  # type: ignore[attr-defined]
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"The pattern {pattern!r} is not a valid regular expression: {error}.") from error
    if found.state.flags & ~re.UNICODE:
        raise _unsupported(pattern, "inline flags")
    return _checked(pattern, found)


def _checked(pattern: str, parts: Iterable[tuple[Any, Any]], depth: int = 0) -> tuple[Any, ...]:
    """Return the parser's (operation, argument) pairs with names as operations and tuples as sequences."""
    if depth > DEEPEST:
        raise InputError(f"The pattern {pattern[:80]!r} has more than {DEEPEST} levels of groups.")
    made: list[tuple[str, Any]] = []
    for operation, argument in parts:
        name = str(operation)
        if name in _SINGLE or name == "AT":
            made.append((name, argument))
        elif name in _REPEATS:
            least, most, inner = argument
            made.append(("REPEAT", (int(least), int(most), _checked(pattern, inner, depth + 1))))
        elif name == "SUBPATTERN":
            _, added, removed, inner = argument
            if added or removed:
                raise _unsupported(pattern, "inline flags")
            made.append(("GROUP", _checked(pattern, inner, depth + 1)))
        elif name == "BRANCH":
            made.append((name, [_checked(pattern, inner, depth + 1) for inner in argument[1]]))
        elif name in ("ASSERT", "ASSERT_NOT"):
            direction, inner = argument
            width = 0 if direction > 0 else inner.getwidth()[0]  # lookbehind has one width
            made.append((name, (direction, width, _checked(pattern, inner, depth + 1))))
        else:
            raise _unsupported(pattern, name.lower().replace("_", " "))
    return tuple(made)


def _unsupported(pattern: str, what: str) -> InputError:
    return InputError(
        f"The pattern {pattern!r} uses {what}, which qcore does not evaluate for files of others: its time "
        "has no bound."
    )


class _Match:
    """One match of a pattern with a name. Sets of positions are integers: bit i stands for the place before
    character i."""

    def __init__(self, pattern: str, name: str) -> None:
        self._pattern, self._name, self._left = pattern, name, MOST_STEPS
        self._where: dict[str, int] = {}
        for i, char in enumerate(name):
            self._where[char] = self._where.get(char, 0) | 1 << i
        self._all = (1 << len(name)) - 1

    def after(self, parts: tuple[Any, ...], starts: int) -> int:
        """Return the positions where a match of `parts` that begins at one of `starts` can end."""
        for name, argument in parts:
            if not starts:
                return 0
            self._left -= 1
            if self._left < 0:
                raise InputError(
                    f"The pattern {self._pattern[:80]!r} takes more than {MOST_STEPS:,} steps on "
                    f"{self._name[:80]!r}, so it is not evaluated."
                )
            starts = self._step(name, argument, starts)
        return starts

    def _step(self, name: str, argument: Any, starts: int) -> int:
        if name in _SINGLE:
            return (starts & self._members(name, argument)) << 1
        if name == "GROUP":
            return self.after(argument, starts)
        if name == "BRANCH":
            ends = 0
            for inner in argument:
                ends |= self.after(inner, starts)
            return ends
        if name == "REPEAT":
            least, most, inner = argument
            return self._repeat(least, most, inner, starts)
        if name == "AT":
            return starts & self._places(str(argument))
        direction, width, inner = argument
        held = 0
        for i in range(len(self._name) + 1):
            if starts >> i & 1 and i >= width:
                ends = self.after(inner, 1 << (i - width))
                held |= bool(ends if direction > 0 else ends >> i & 1) << i
        return held if name == "ASSERT" else starts & ~held

    def _repeat(self, least: int, most: int, inner: tuple[Any, ...], starts: int) -> int:
        for _ in range(least):
            ends = self.after(inner, starts)
            if ends == starts or not ends:  # further repetitions change nothing
                starts = ends
                break
            starts = ends
        if most > len(self._name) and len(inner) == 1 and inner[0][0] in _SINGLE:
            members = self._members(*inner[0])
            return starts | (((starts & members) + members) ^ members)
        reached, new = starts, starts
        for _ in range(most - least):
            new = self.after(inner, new) & ~reached
            if not new:
                break
            reached |= new
        return reached

    def _members(self, name: str, argument: Any) -> int:
        """Return the positions of the characters that an operation of one character accepts."""
        if name == "ANY":
            return self._all & ~self._where.get("\n", 0)
        if name == "LITERAL":
            return self._where.get(chr(argument), 0)
        if name == "NOT_LITERAL":
            return self._all & ~self._where.get(chr(argument), 0)
        found, negated = 0, False
        for kind, value in argument:
            negated |= str(kind) == "NEGATE"
            for char, places in self._where.items():
                if _accepts(str(kind), value, char):
                    found |= places
        return self._all & ~found if negated else found

    def _places(self, where: str) -> int:
        """Return the positions at which an anchor holds."""
        size = len(self._name)
        if where in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return 1
        if where in ("AT_END", "AT_END_STRING"):
            newline = where == "AT_END" and self._name.endswith("\n")
            return 1 << size | (1 << (size - 1) if newline else 0)
        is_word = _CATEGORIES["CATEGORY_WORD"]
        words = sum(places for char, places in self._where.items() if is_word(char))
        edges = words ^ words << 1
        return edges if where == "AT_BOUNDARY" else (self._all << 1 | 1) & ~edges


def _accepts(kind: str, value: Any, char: str) -> bool:
    """Return whether one entry of a set of characters accepts `char`."""
    if kind == "LITERAL":
        return ord(char) == value
    if kind == "RANGE":
        return value[0] <= ord(char) <= value[1]
    if kind == "CATEGORY":
        category = str(value)
        if category in _CATEGORIES:
            return _CATEGORIES[category](char)
        return not _CATEGORIES[category.replace("_NOT_", "_")](char)
    return False

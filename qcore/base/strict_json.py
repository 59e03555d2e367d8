"""Checks of JSON that strangers wrote, beyond its grammar: no key twice, and no deep nesting."""

from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

DEEPEST = 32  # levels of objects and lists; the files of models have at most ten
H = TypeVar("H", bound=Hashable)


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of `pairs`, as `object_pairs_hook` of `json.loads`. Raise `ValueError` for a key that
    occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {repeated(name for name, _ in pairs)!r} occurs twice")
    return found


def repeated(values: Iterable[H]) -> H | None:
    """Return the first of `values` that occurred before; None if there is none."""
    seen: set[H] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def is_deep(value: Any, deepest: int = DEEPEST) -> bool:
    """Return whether a JSON value has more than `deepest` levels of objects and lists. Such a value exhausts
    the stack of functions that walk through it, `repr` among them."""
    level = [value]
    for _ in range(deepest + 1):
        level = [
            child
            for part in level
            if isinstance(part, dict | list)
            for child in (part.values() if isinstance(part, dict) else part)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True

"""Tables of named entries that register themselves: methods, engines, recipe parts. Unknown names raise an
error with the nearest ones."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Generic, TypeVar, cast

from qcore.base.errors import InputError

T = TypeVar("T")
_LONGEST = 200  # characters of a name that is compared with the known ones


class Registry(Generic[T]):
    """A mapping from names to entries of one `kind` (a word for messages, such as "method").

    >>> methods = Registry("method")
    >>> @methods.register("rtn")
    ... def rtn(): ...
    >>> methods["rtn"] is rtn
    True
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters its argument under `name`. Raise `ValueError` if the name is
        taken."""

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        """Return the entry called `name`. Raise `InputError` with the nearest names if there is none."""
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a `name` that is not among the `known` ones. It lists the nearest names, or all if
    none is near."""
    known = list(known)
    hint = did_you_mean(name, known) or f"Known: {', '.join(known)}."
    return InputError(f"Unknown {kind} {name!r}. {hint}")


def filled(kind: type[T], **options: Any) -> T:
    """Return the dataclass `kind` made from `options`. Raise `InputError` for a name that is not one of its
    fields."""
    known = [each.name for each in fields(cast(Any, kind))]
    for name in options:
        if name not in known:
            raise unknown("option", name, known)
    return kind(**options)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return "Did you mean …?" with the nearest of the `known` names, or those that have `name` as a part, or
    None if there are none."""
    known = list(known)
    if len(name) > _LONGEST:  # matching takes time with the square of the length
        return None
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    near = near or [each for each in known if name in each.split("-")][:3]
    return f"Did you mean {' or '.join(near)}?" if near else None

"""The one type of progress callbacks."""

from typing import Protocol


class Progress(Protocol):
    """A callback that long work calls after each step."""

    def __call__(self, done: int, total: int, words: str, /) -> None:
        """Report `done` of `total` steps; `words` names the current step. `total` is 0 while unknown."""

"""Cut a text of T tokens into windows so that every token but the first is scored exactly once.

A model that reads tokens b … e-1 predicts tokens b+1 … e. The model reads `window` tokens at a
time; windows begin at 0, stride, 2·stride …, and each scores only the tokens that no earlier window has
scored:

    window 4, stride 4     reads 0 1 2 3   scores 1 2 3 4       reads 4 5 6 7   scores 5 6 7 8
    window 4, stride 2     reads 0 1 2 3   scores 1 2 3 4       reads 2 3 4 5   scores     5 6

So token 4, the first of the second window above, is predicted by the first window: with stride = window the
two spans overlap by one token, and every token is scored. This is the strided loop of the transformers
documentation with `max_length = window + 1`, and the rolling windows of lm-evaluation-harness with the text's
first token in the place of the prefix.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from qcore.base.errors import InputError


@dataclass(frozen=True)
class Window:
    """The model reads tokens `begin` … `end` - 1; the first `skip` of its predictions were scored by earlier
    windows."""

    begin: int
    end: int
    skip: int

    @property
    def scored(self) -> int:
        """Return how many tokens this window scores."""
        return self.end - self.begin - self.skip


def windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Return the windows over a text of `tokens` tokens, in order; the last may be shorter. The arguments
    must be valid, see `check`."""
    begin = done = 0
    while done < tokens - 1:
        end = min(begin + window, tokens - 1)
        yield Window(begin, end, done - begin)
        begin, done = begin + stride, end


def check(window: int, stride: int | None) -> tuple[int, int]:
    """Return (window, stride), with stride defaulting to window. Raise `InputError` unless 1 ≤ stride ≤
    window."""
    stride = window if stride is None else stride
    for name, value in (("window", window), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"The {name} is {value!r}, but it must be a whole number of tokens, at least 1.")
    if stride > window:
        raise InputError(
            f"The stride ({stride}) is larger than the window ({window}), so tokens would go "
            f"unscored; use at most {window}."
        )
    return window, stride

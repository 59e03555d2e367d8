"""Temporary replacement of a module's forward, restored exactly.

A module's forward may already be a replacement, for instance by accelerate's hooks, so restoring must not
just delete it.
"""

from collections.abc import Callable
from types import TracebackType

from torch import nn


class stand_in:  # lower case, because it is used like a function in `with`
    """Replaces `module`'s forward by `forward` until `restore` or the end of a `with` block. Nested
    replacements must end in reverse order."""

    def __init__(self, module: nn.Module, forward: Callable):
        self._module = module
        self._before = vars(module).get("forward")  # None: the class's own method
        module.forward = forward

    def restore(self) -> None:
        """Put back the forward that was there before."""
        if self._before is None:
            vars(self._module).pop("forward", None)
        else:
            self._module.forward = self._before

    def __enter__(self) -> "stand_in":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

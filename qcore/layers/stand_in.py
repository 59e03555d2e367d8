"""Another forward for a module, and back to exactly what was there.

A module's forward may have been replaced before, by accelerate's hooks for instance, so restoring must not
mean removing.
"""

from collections.abc import Callable
from types import TracebackType

from torch import nn


class stand_in:  # a verb, as `with` reads it
    """Let `forward` run in place of `module`'s forward, from the construction on until `restore` or the end
    of a `with` block. Nested ones end in reverse order."""

    def __init__(self, module: nn.Module, forward: Callable):
        self._module = module
        self._before = vars(module).get("forward")  # None: the method of the class
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

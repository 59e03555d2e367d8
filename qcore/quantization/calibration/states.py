"""What passes from one decoder block to the next: the hidden states, and in some architectures more.

    hidden    the hidden states, (B, T, H) in most models (Gemma 3n has four streams, (4, B, T, H))
    extra     other outputs of a block that the next one reads, such as the tokens that its indexer chose
    shared    contents of a dictionary that all blocks get and some write to, such as keys and values that
              later blocks read again

A state is never changed: running a block returns a new one. So one state can be run again and again with
other weights, and the unquantized model's states are kept beside those of the quantized model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import torch

Path = tuple[int | str, ...]  # where a value lies in nested tuples, lists and dictionaries


@dataclass(frozen=True)
class State:
    """The state of the windows with these numbers between two blocks; see the module."""

    hidden: torch.Tensor
    windows: tuple[int, ...] = (0,)
    extra: Mapping[Path, object] = field(default_factory=dict)
    shared: Mapping[Path, Mapping] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device of the hidden states."""
        return self.hidden.device

    @property
    def plain(self) -> bool:
        """Whether the hidden states are all there is, as (B, T, H), so that windows can be joined."""
        return not self.extra and not self.shared and self.hidden.ndim == 3

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All floating-point tensors, the hidden states first."""
        held = (leaf for _, leaf in leaves((self.extra, self.shared)))
        floats = (leaf for leaf in held if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
        return [self.hidden, *floats]

    def with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> State:
        """Return the state with `change` applied to all of `tensors`, in their order."""
        hidden = change(self.hidden)
        changed: dict[Path, object] = {
            path: change(leaf)
            for path, leaf in leaves((self.extra, self.shared))
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        }
        extra, shared = rebuilt((self.extra, self.shared), changed)
        return replace(self, hidden=hidden, extra=extra, shared=shared)

    def shares_with(self, other: State) -> bool:
        """Return whether both hold the same objects in the dictionaries that blocks share."""
        own, others = (list(leaves(state.shared)) for state in (self, other))
        return len(own) == len(others) and all(
            path == place and value is held for (path, value), (place, held) in zip(own, others, strict=True)
        )

    def detached(self) -> State:
        """Return the state as the beginning of a computation whose gradients are wanted."""
        return self.with_tensors(lambda tensor: tensor.detach().requires_grad_())

    def split(self) -> list[State]:
        """Return the state of each window."""
        if len(self.windows) == 1:
            return [self]
        parts = self.hidden.split(1)
        return [State(part, (window,)) for part, window in zip(parts, self.windows, strict=True)]


def join(states: Sequence[State]) -> State:
    """Return the states of several windows as one batch. Raise `ValueError` if they cannot be joined."""
    if len(states) == 1:
        return states[0]
    if not all(state.plain for state in states):
        raise ValueError("these states hold more than hidden states, so they run one by one")
    windows = tuple(window for state in states for window in state.windows)
    return State(torch.cat([state.hidden for state in states]), windows)


def gradients(
    after: State,
    wanted: Sequence[torch.Tensor | None],
    inputs: Sequence[torch.Tensor],
    *,
    retain_graph: bool = False,
) -> list[torch.Tensor | None]:
    """Return the gradients at `inputs` for the gradients `wanted` at each of `after.tensors`, as far as these
    are known and depend on the inputs."""
    known = [
        (tensor, slope)
        for tensor, slope in zip(after.tensors, wanted, strict=True)
        if slope is not None and tensor.requires_grad
    ]
    outputs, slopes = zip(*known, strict=True)
    reached = [tensor for tensor in inputs if tensor.requires_grad]  # not what ran without gradients
    found = iter(torch.autograd.grad(outputs, reached, slopes, retain_graph=retain_graph, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Yield (path, value) of everything inside nested tuples, lists and dictionaries."""
    if isinstance(value, (tuple, list)):
        for number, each in enumerate(value):
            yield from leaves(each, (*path, number))
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    else:
        yield path, value


def at(value: object, path: Path) -> object:
    """Return what lies at `path`. Raise `KeyError`, `IndexError` or `TypeError` if nothing does."""
    for step in path:
        value = value[step]  # type: ignore[index]
    return value


def rebuilt(value, changes: Mapping[Path, object], path: Path = ()):
    """Return `value` with what lies at each path of `changes` replaced. Unchanged parts are the same
    objects."""
    if path in changes:
        return changes[path]
    if not any(len(each) > len(path) and each[: len(path)] == path for each in changes):
        return value
    if isinstance(value, (tuple, list)):
        made = [rebuilt(each, changes, (*path, number)) for number, each in enumerate(value)]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    new: MutableMapping = copy(value)
    for name, each in value.items():
        new[name] = rebuilt(each, changes, (*path, name))
    return new

"""Parts of a block whose layers are all chosen need not run again: what they put out for each window is kept.

A block is run over the text once for each of its stages, because each is to see what the quantized ones before it make. By the time the
feed-forward layers are looked at, nothing in the attention changes any more; keeping its output, tokens · hidden size · 4 bytes, saves
about a third of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from torch import nn


class Settled:
    """The direct children of `block`, called `prefix`.…, that hold targets. `stages` are the targets' names in the order of execution."""

    def __init__(self, block: nn.Module, prefix: str, stages: list[list[str]]):
        self._children: dict[str, nn.Module] = {}
        self._needs: dict[str, set[str]] = {}  # what must be chosen before a child's output is final: its own targets and all before them
        self._chosen: set[str] = set()
        self._kept: dict[str, dict[tuple[int, int], object]] = {}  # by window and call
        before: set[str] = set()
        for stage in stages:
            before = before | set(stage)
            for name in {target.removeprefix(f"{prefix}.").partition(".")[0] for target in stage}:
                self._children[name], self._needs[name] = getattr(block, name), before

    def choose(self, target: str) -> None:
        """The codes of a target are chosen, for the first time or again."""
        self.change(target)
        self._chosen.add(target)

    def change(self, target: str | None = None) -> None:
        """A target's weight is another one now, or (None) some other parameter of the block: what it had a part in is forgotten."""
        for name in [name for name in self._kept if target is None or target in self._needs[name]]:
            del self._kept[name]

    @contextmanager
    def window(self, number: int) -> Iterator[None]:
        """Inside, the block is run on window `number`: children that are settled put out what they did before."""
        replaced = []
        for name, child in self._children.items():
            if self._needs[name] <= self._chosen:
                child.forward = self._stand_in(child.forward, self._kept.setdefault(name, {}), number)
                replaced.append(child)
        try:
            yield
        finally:
            for child in replaced:
                del child.forward  # the class's own method shows again

    @staticmethod
    def _stand_in(forward, kept: dict[tuple[int, int], object], number: int):
        calls = count()  # a child may be run more than once

        def run(*arguments, **keywords):
            key = number, next(calls)
            if key not in kept:
                kept[key] = forward(*arguments, **keywords)
            return kept[key]

        return run

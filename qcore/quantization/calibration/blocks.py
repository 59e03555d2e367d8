"""A model as a list of decoder blocks that run one after another, each over the whole calibration text.

Every transformers decoder holds its blocks in one `ModuleList` and calls them in order. How it calls each
one is recorded once (`calls.py`), and what passes from block to block is a `State`. Then each block can run
by itself, and only one block's activations are held. Before that, the blocks are run one by one on a few
tokens, and must give what the model gives; a model that does something else between its blocks is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.layers.select import Target
from qcore.layers.text_part import text_part
from qcore.quantization.calibration.calls import Call, Form, NotInOrder, contents, form_of_each, record
from qcore.quantization.calibration.states import Path, State, at, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL_SPEED = 1024  # tokens per batch, from which on matrix products reach full speed
PROBE = 16  # tokens on which the blocks are compared with the model
TOLERANCE = 1e-3  # of their outputs, relative: about 1e-6 by rounding


class Blocks:
    """The blocks of `model`, named `name`.0, `name`.1, …, and the means to run them."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.name, self.modules = find_blocks(model)
        self.forms: list[Form] = []
        self._calls: list[Call] = []
        self._batched = True  # several windows may run as one batch

    def __len__(self) -> int:
        return len(self.modules)

    @torch.no_grad()
    def embed(self, ids: torch.Tensor, *, whole: bool = True) -> list[State]:
        """Return the state before the first block for each window of `ids` (windows, T), and record the
        blocks' other arguments. Raise `InputError` if the blocks of the model cannot be run one by one.

        With `whole` False, only the first block has its weights, and the others pass their input through;
        then outputs are not compared with the model's."""
        ids = ids.to(next(self.model.parameters()).device)
        try:
            probe = ids[:1, :PROBE]
            modules = list(self.modules)
            self.forms, outputs = form_of_each(self.model, modules, probe)
            _check_apart(modules)
            if whole:  # two texts in turns: a block may remember the text before
                probes = torch.cat((probe, probe.flip(1)))
                states, self._calls = record(self.model, modules, probes, self.forms)
                self._check(states, [outputs, form_of_each(self.model, modules, probes[1:])[1]])
            states, self._calls = record(self.model, modules, ids, self.forms)
        except NotInOrder as reason:
            raise InputError(
                f"{type(self.model).__name__} cannot be run block by block: {reason}. Recipes that read text "
                "need that; choose one that needs no text, such as int4-g64-hqq."
            ) from reason
        return states

    def batches(self, states: list[State]) -> list[slice]:
        """Return slices of the windows to run as one batch, of about `FULL_SPEED` tokens. Batches hold one
        window if a block has an argument made for a single window, such as a bias per head."""
        alike = self._batched and states[0].plain and all(call.fits_any_batch for call in self._calls)
        size = max(1, FULL_SPEED // states[0].hidden.shape[1]) if alike else 1
        return [slice(start, min(start + size, len(states))) for start in range(0, len(states), size)]

    @torch.no_grad()
    def run(self, position: int, state: State, block: Callable | None = None) -> State:
        """Return the state after block number `position` (or its copy `block`) for the `state` before it."""
        return self.call(position, state, block)

    def call(self, position: int, state: State, block: Callable | None = None) -> State:
        """Do the same as `run`, with gradients."""
        call, block = self._calls[position], self.modules[position] if block is None else block
        arguments, keywords = call.arguments(state)
        result = block(*arguments, **keywords)
        later = self._calls[position + 1].extra.values() if position + 1 < len(self) else ()
        extra: dict[Path, object] = {path: at(result, path) for path in later}
        held = {path: contents(at((arguments, keywords), path)) for path in call.shared}
        return State(self.forms[position].hidden(result), state.windows, extra, held)

    def passing(self, position: int, hidden: torch.Tensor) -> object:
        """Return what block number `position` would return if it passed `hidden` through."""
        return self.forms[position].passing(hidden)

    def inside(self, targets: Sequence[Target]) -> list[list[Target]]:
        """Return the targets of each block."""
        return [
            [target for target in targets if target.module.startswith(f"{self.name}.{position}.")]
            for position in range(len(self))
        ]

    def position_of(self, target: Target) -> int:
        """Return the number of the block that holds `target`."""
        return int(target.module.removeprefix(f"{self.name}.").partition(".")[0])

    def _check(self, states: list[State], outputs: list[list[torch.Tensor]]) -> None:
        """Raise `NotInOrder` unless the blocks, one by one, give the model's `outputs` [window][block]."""
        for position in range(len(self)):
            before = states
            try:
                states = [self.run(position, state) for state in states]
            except Exception as error:  # code of others, called in another way than it was written for
                why = f"block number {position + 1} does not run by itself ({error})"
                raise NotInOrder(why) from error
            self._batched = self._batched and self._runs_batch(position, before, states)
            for state, window in zip(states, outputs, strict=True):
                if not _alike(state.hidden, window[position]):
                    raise NotInOrder(f"block number {position + 1} by itself computes something else")

    def _runs_batch(self, position: int, before: list[State], after: list[State]) -> bool:
        """Return whether a block runs on several windows at once, for states `before` and `after` it."""
        if not (before[0].plain and self._calls[position].fits_any_batch):
            return False
        try:
            made = self.run(position, join(before)).split()
        except Exception:  # code of others, such as a mask that is reshaped for the batch it was made for
            return False
        return all(_alike(own.hidden, each.hidden) for own, each in zip(made, after, strict=True))


def _check_apart(modules: list[nn.Module]) -> None:
    """Raise `NotInOrder` if two blocks hold the same module with parameters."""
    owner: dict[nn.Module, int] = {}
    for position, block in enumerate(modules):
        for module in block.modules():
            if next(module.parameters(recurse=False), None) is None:
                continue
            if owner.setdefault(module, position) != position:
                raise NotInOrder(f"its blocks number {owner[module] + 1} and {position + 1} share a module")


def _alike(made: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Return whether `made` is `wanted` up to rounding, or `wanted` is not finite."""
    if made.shape != wanted.shape:
        return False
    error = (made - wanted).float().norm() / wanted.float().norm().clamp_min(1e-30)
    return not wanted.isfinite().all() or bool(error < TOLERANCE)


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return name and module of the list of decoder blocks: the `ModuleList` with the most weights in the
    text model. Raise `InputError` if there is none."""
    text = text_part(model)
    lists = [
        (name, module)
        for name, module in text.stack.named_modules(prefix=text.name)
        if isinstance(module, nn.ModuleList) and len(module) and text.tower_of(name) is None
    ]
    if not lists:
        raise InputError(
            f"{type(model).__name__} has no list of decoder blocks, so it cannot be calibrated. "
            "Choose a recipe that needs no text, such as int4-g64-hqq."
        )
    return max(lists, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))

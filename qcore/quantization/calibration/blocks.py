"""A model as a list of decoder blocks that are run one after another, each over all of the calibration text.

Every transformers decoder holds its blocks in one `ModuleList` and calls them in order: block(hidden states,
masks and positions). What comes with the hidden states is the same for every window of the same length, so it
is recorded once, for each block; after that a block can be run by itself, and only one block's activations
are ever held.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.layers.stand_in import stand_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL_SPEED = 1024  # tokens


@dataclass
class Call:
    """What a block is given besides its hidden states, and whether it returns a tuple."""

    arguments: tuple
    keywords: dict
    by_name: bool  # the hidden states are given as a keyword


class Blocks:
    """The blocks of `model`, called `name`.0, `name`.1, …, and how to run them."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.name, self.modules = find_blocks(model)
        self._calls: list[Call] = []

    def __len__(self) -> int:
        return len(self.modules)

    @torch.no_grad()
    def embed(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """What the first block is given for each window of `ids` (windows, T): tensors (1, T, H)."""
        device = next(self.model.parameters()).device
        states: list[torch.Tensor] = []
        calls: dict[int, Call] = {}
        returns_tuple = self._returns_tuple(ids[:1, :2].to(device))

        def recording(position: int):
            def forward(*arguments, **keywords):
                by_name = not arguments
                hidden = keywords.pop("hidden_states") if by_name else arguments[0]
                calls.setdefault(position, Call(arguments[1:], keywords, by_name))
                if position == 0:
                    states.append(hidden)
                return (hidden,) if returns_tuple else hidden

            return forward

        with ExitStack() as replaced:
            for position, block in enumerate(self.modules):
                replaced.enter_context(stand_in(block, recording(position)))
            for window in ids:
                self.model.base_model(input_ids=window[None].to(device), use_cache=False)
        if len(calls) != len(self.modules):
            raise InputError(
                f"{type(self.model).__name__} does not call its blocks one after another, so it cannot be calibrated."
            )
        self._calls = [calls[position] for position in range(len(self.modules))]
        return states

    def batches(self, states: list[torch.Tensor]) -> list[slice]:
        """Which of the windows whose `states` (1, T, H) are given to run together: about 1,024 tokens, from
        which on products run at full speed. One by one for models whose blocks are given something that was
        made for a single window, such as a bias for each head."""
        alike = all(
            _fits_any_batch(value)
            for call in self._calls
            for value in (*call.arguments, *call.keywords.values())
        )
        size = max(1, FULL_SPEED // states[0].shape[1]) if alike else 1
        return [slice(start, min(start + size, len(states))) for start in range(0, len(states), size)]

    @torch.no_grad()
    def run(self, position: int, hidden: torch.Tensor, block: Callable | None = None) -> torch.Tensor:
        """What block number `position` (or a copy of it, `block`) makes of `hidden` (B, T, H)."""
        return self.call(position, hidden, block)

    def call(self, position: int, hidden: torch.Tensor, block: Callable | None = None) -> torch.Tensor:
        """`run` with gradients. `hidden` may hold several windows, (B, T, H)."""
        call, block = self._calls[position], self.modules[position] if block is None else block
        if call.by_name:
            result = block(*call.arguments, hidden_states=hidden, **call.keywords)
        else:
            result = block(hidden, *call.arguments, **call.keywords)
        return result[0] if isinstance(result, tuple) else result

    def _returns_tuple(self, ids: torch.Tensor) -> bool:
        seen = []
        hook = self.modules[0].register_forward_hook(
            lambda module, arguments, output: seen.append(isinstance(output, tuple))
        )
        try:
            self.model.base_model(input_ids=ids, use_cache=False)
        finally:
            hook.remove()
        return bool(seen) and seen[0]


def _fits_any_batch(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_fits_any_batch, value))
    return not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[0] == 1


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks: the `ModuleList` that holds most of the weights. Raises `InputError` if
    there is none."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not lists:
        raise InputError(
            f"{type(model).__name__} has no list of decoder blocks, so methods that read calibration text cannot walk through it. "
            "Choose a recipe that needs no text, such as int4-g64-hqq."
        )
    return max(lists, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))

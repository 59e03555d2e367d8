"""A model as a list of decoder blocks that run one after another, each over the whole calibration text.

Every transformers decoder holds its blocks in one `ModuleList` and calls them in order: block(hidden states,
masks and positions). The other arguments are the same for all windows of one length, so they are recorded
once per block. Then each block can run by itself, and only one block's activations are held.
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
from qcore.layers.text_part import text_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL_SPEED = 1024  # tokens per batch, from which on matrix products reach full speed


@dataclass
class Call:
    """The arguments of a block besides its hidden states."""

    arguments: tuple
    keywords: dict
    by_name: bool  # the hidden states are a keyword argument


class Blocks:
    """The blocks of `model`, named `name`.0, `name`.1, …, and the means to run them."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.name, self.modules = find_blocks(model)
        self._calls: list[Call] = []

    def __len__(self) -> int:
        return len(self.modules)

    @torch.no_grad()
    def embed(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Return the inputs (1, T, H) of the first block for each window of `ids` (windows, T), and record
        the blocks' other arguments. Raise `InputError` if the model does not call its blocks in order."""
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
                f"{type(self.model).__name__} does not call its blocks one after another, "
                "so it cannot be calibrated. Choose a recipe that needs no text, such as int4-g64-hqq."
            )
        self._calls = [calls[position] for position in range(len(self.modules))]
        return states

    def batches(self, states: list[torch.Tensor]) -> list[slice]:
        """Return slices of the windows to run as one batch, of about `FULL_SPEED` tokens, for their `states`
        (1, T, H). Batches hold one window if a block has an argument made for a single window, such as a bias
        per head."""
        alike = all(
            _fits_any_batch(value)
            for call in self._calls
            for value in (*call.arguments, *call.keywords.values())
        )
        size = max(1, FULL_SPEED // states[0].shape[1]) if alike else 1
        return [slice(start, min(start + size, len(states))) for start in range(0, len(states), size)]

    @torch.no_grad()
    def run(self, position: int, hidden: torch.Tensor, block: Callable | None = None) -> torch.Tensor:
        """Return the output (B, T, H) of block number `position` (or of its copy `block`) for `hidden` (B, T,
        H)."""
        return self.call(position, hidden, block)

    def call(self, position: int, hidden: torch.Tensor, block: Callable | None = None) -> torch.Tensor:
        """Do the same as `run`, with gradients."""
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
    """Return name and module of the list of decoder blocks: the `ModuleList` with the most weights in the
    text model. Raise `InputError` if there is none."""
    text = text_part(model)
    lists = [
        (name, module)
        for name, module in text.stack.named_modules(prefix=text.name)
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not lists:
        raise InputError(
            f"{type(model).__name__} has no list of decoder blocks, so it cannot be calibrated. "
            "Choose a recipe that needs no text, such as int4-g64-hqq."
        )
    return max(lists, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))

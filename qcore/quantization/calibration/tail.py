"""From the last block's output to the logits, by the model's own code with its blocks replaced by
pass-throughs."""

from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from qcore.layers.stand_in import stand_in
from qcore.quantization.calibration.blocks import Blocks


class Tail:
    """Everything that `blocks.model` computes after its blocks, such as norm and head. Gradients flow."""

    def __init__(self, blocks: Blocks):
        self.blocks = blocks
        self._tuple: bool | None = None

    def __call__(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (T, V), float32, of one window `ids` (T,) for the output `hidden` (1, T, H) of
        the last block."""
        modules, ids = self.blocks.modules, ids.to(hidden.device)
        if self._tuple is None:
            self._tuple = self._returns_tuple(ids)
        with ExitStack() as replaced:
            for module in modules:
                given = hidden if module is modules[-1] else None
                replaced.enter_context(stand_in(module, partial(self._through, given)))
            logits = self.blocks.model(input_ids=ids[None], use_cache=False).logits[0]
        return logits.float()

    def _through(self, given: torch.Tensor | None, *arguments, **keywords):
        state = given if given is not None else arguments[0] if arguments else keywords["hidden_states"]
        return (state,) if self._tuple else state

    @torch.no_grad()
    def _returns_tuple(self, ids: torch.Tensor) -> bool:
        seen: list[bool] = []

        def note(module: nn.Module, arguments, output) -> None:
            seen.append(isinstance(output, tuple))

        hook = self.blocks.modules[0].register_forward_hook(note)
        try:
            self.blocks.model(input_ids=ids[None, :2], use_cache=False)
        finally:
            hook.remove()
        return seen[0]

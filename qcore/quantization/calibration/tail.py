"""From the last block's output to the logits, by the model's own code with its blocks replaced by
pass-throughs."""

from contextlib import ExitStack
from functools import partial

import torch

from qcore.layers.stand_in import stand_in
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.calls import hidden_of


class Tail:
    """Everything that `blocks.model` computes after its blocks, such as norm and head. Gradients flow. The
    blocks must have read a text."""

    def __init__(self, blocks: Blocks):
        self.blocks = blocks

    def __call__(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (T, V), float32, of one window `ids` (T,) for the output `hidden` (1, T, H) of
        the last block."""
        modules, ids = self.blocks.modules, ids.to(hidden.device)
        with ExitStack() as replaced:
            for position, module in enumerate(modules):
                given = hidden if module is modules[-1] else None
                replaced.enter_context(stand_in(module, partial(self._through, position, given)))
            logits = self.blocks.model(input_ids=ids[None], use_cache=False).logits[0]
        return logits.float()

    def _through(self, position: int, given: torch.Tensor | None, *arguments, **keywords) -> object:
        hidden = hidden_of((arguments, keywords)) if given is None else given
        return self.blocks.passing(position, hidden)

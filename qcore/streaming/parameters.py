"""The parameters of a checkpoint under a recipe, straight from its files: an export of a model larger than
memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcore.layers.select import select
from qcore.library.parameters import Entry, outline
from qcore.models import Checkpoint
from qcore.recipes import Recipe
from qcore.streaming.layout import Unit
from qcore.streaming.quantizing import choose
from qcore.streaming.source import Source

if TYPE_CHECKING:
    import torch

    from qcore.formats.tensor import QuantizedTensor


class StreamedParameters:
    """See `qcore.library.parameters.Parameters`. `recipe` chooses codes from each weight alone
    (`quantizing.reason_against`); None leaves the weights as they are stored."""

    calibration = None

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe | None):
        self.checkpoint, self.recipe = checkpoint, recipe
        self.source = Source(checkpoint)
        self.model = self.source.described()
        self.entries = outline(checkpoint, recipe)
        chosen = recipe is not None and recipe.quantizes
        targets = select(self.source.model, recipe).targets if chosen and recipe else ()
        self._targets = {target.name: target for target in targets}

    def read(self, entry: Entry, expert: int | None = None) -> torch.Tensor | QuantizedTensor:
        """See `Parameters.read`. Raise `InputError` naming a weight that is NaN or infinite."""
        target = self._targets.get(entry.name)
        if target is not None:
            if target.fused and expert is None:
                raise ValueError(f"{entry.name} holds the codes of several experts")
            return choose(self.source, Unit(entry.name, expert, target, ()))
        self.source.check_finite(entry.name, expert)
        tensor = self.source.read(entry.name) if expert is None else self.source.expert(entry.name, expert)
        return tensor.transpose(-1, -2) if entry.transposed else tensor

"""optimum-quanto: int8 weights with one scale per channel, or int4 weights with a scale and a shift per group
of inputs.

Stored for N outputs and K inputs, in groups of g:

    int8    N·K codes of 8 bits, N float32 scales
    int4    N·K / 2 bytes, N·K / g float32 scales and as many float32 shifts

Groups have 128 inputs if K is a multiple of 128; otherwise the library tries 96, 64 and 32, and then takes
one group per channel. The ledger shows the actual group size of each layer. Weights are dequantized and
multiplied in floating point.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qcore.base.progress import Progress
from qcore.engines import EngineInfo, Variant, register
from qcore.engines.linears import Converted, importing, inner_tensors, replace_linears, unchanged
from qcore.layers.stand_in import stand_in
from qcore.recipes import Recipe
from qcore.recipes.ledger import LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INFO = EngineInfo(
    "quanto",
    title="optimum-quanto",
    library="optimum.quanto",
    install="optimum-quanto",
    recipes={
        "quanto-int8": Variant("int8", "optimum-quanto int8 weights, per channel", 8.1, "int8", 60_000_000),
        "quanto-int4": Variant("int4", "optimum-quanto int4 weights, groups of 128", 4.5, "int4-g128"),
    },
    loaded_bytes=60_000_000,
    color="#d0558f",
)


@register(INFO)
def apply(model: PreTrainedModel, recipe: Recipe, progress: Progress, quantize=None) -> list[LedgerRow]:
    """Quantize the linear layers of `model` in place to the recipe's variant: int8 or int4."""
    with importing("optimum-quanto"):
        import optimum.quanto as quanto  # unlike "from optimum", fails if the module does not load
    kind = {"int8": quanto.qint8, "int4": quanto.qint4}[recipe.engine.variant]

    def convert(linear: nn.Linear) -> Converted:
        holder = nn.Sequential(linear)
        quanto.quantize(holder, weights=kind)
        quanto.freeze(holder)
        new: Any = holder[0]
        if not isinstance(new.weight, quanto.QTensor) or new.weight.qtype is not kind:
            raise unchanged("optimum-quanto", f"its weight is a {type(new.weight).__name__}")
        stand_in(new, MethodType(_forward, new))
        size = new.weight_group_size
        return Converted(
            new.train(linear.training), inner_tensors(new.weight), recipe.name + (f"-g{size}" if size else "")
        )

    return replace_linears(model, recipe, progress, "optimum-quanto", convert)


def _forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run the layer's own forward outside inference mode, in which the library's int4 tensors cannot be
    transposed."""
    with torch.inference_mode(False), torch.no_grad():
        return type(self).forward(self, x)

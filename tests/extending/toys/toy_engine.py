"""An engine from outside the package, one file: the "library" is Python's own `array`, and its int8 has one
scale per matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from qcore.engines import EngineInfo, Variant, register
from qcore.engines.linears import Converted, replace_linears
from qcore.recipes import Recipe
from qcore.recipes.ledger import LedgerRow

INFO = EngineInfo(
    "toy",
    title="Toy library",
    library="array",
    install="python",
    recipes={"toy-int8": Variant("int8", "the toy library's int8, one scale per matrix", 8.1, "int8")},
    color="#aa3377",
)


class ToyLinear(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.scale = float(linear.weight.abs().max()) / 127
        self.register_buffer("codes", (linear.weight.data / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.codes.to(x.dtype) * self.scale, self.bias)


@register(INFO)
def apply(
    model: nn.Module, recipe: Recipe, progress: Callable[[int, int, str], None], quantize=None
) -> list[LedgerRow]:
    """Quantize the linear layers of `model` in place."""

    def convert(linear: nn.Linear) -> Converted:
        made = ToyLinear(linear)
        return Converted(made, (made.codes,), recipe.name, extra_bytes=4)

    return replace_linears(model, recipe, progress, INFO.title, convert)

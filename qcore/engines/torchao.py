"""torchao: int8 weights with one scale per channel, with or without activations quantized per token at run
time.

Stored for N outputs and K inputs: N·K codes of 8 bits, N float32 scales, N int8 zero points (all 0: the
format is symmetric, but the library stores them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from qcore.base.progress import Progress
from qcore.engines import EngineInfo, Variant, register
from qcore.engines.linears import Converted, importing, inner_tensors, replace_linears, unchanged
from qcore.recipes import Recipe
from qcore.recipes.ledger import LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INFO = EngineInfo(
    "torchao",
    title="torchao",
    library="torchao",
    install="torchao",
    recipes={
        "torchao-int8": Variant(
            "int8", "torchao Int8WeightOnly: weights per channel", 8.1, "int8", 60_000_000
        ),
        "torchao-int8-dynamic": Variant(
            "int8-dynamic", "torchao Int8DynamicActivationInt8Weight", 8.1, "int8-dynamic"
        ),
    },
    loaded_bytes=60_000_000,
    color="#2a9d7c",
)


@register(INFO)
def apply(model: PreTrainedModel, recipe: Recipe, progress: Progress, quantize=None) -> list[LedgerRow]:
    """Quantize the linear layers of `model` in place to the recipe's variant: int8 or int8-dynamic."""
    with importing("torchao"):
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8Tensor,
            Int8WeightOnlyConfig,
            quantize_,
        )

    configs = {"int8": Int8WeightOnlyConfig, "int8-dynamic": Int8DynamicActivationInt8WeightConfig}
    config = configs[recipe.engine.variant](set_inductor_config=False)  # nothing is compiled here

    def convert(linear: nn.Linear) -> Converted:
        holder = nn.Sequential(linear)
        quantize_(holder, config)
        weight = holder[0].weight
        if not isinstance(weight, Int8Tensor) or (weight.act_quant_kwargs is not None) != (
            recipe.engine.variant == "int8-dynamic"
        ):
            raise unchanged("torchao", f"its weight is a {type(weight).__name__}")
        return Converted(holder[0], inner_tensors(weight), recipe.name)

    return replace_linears(model, recipe, progress, "torchao", convert)

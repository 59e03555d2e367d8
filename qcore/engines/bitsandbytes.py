"""bitsandbytes: LLM.int8() (arXiv 2208.07339), and the 4-bit formats of QLoRA (arXiv 2305.14314). Runs on CPU
and CUDA.

Stored for a weight of N outputs and K inputs, in B = ceil(N·K / 64) blocks of the flattened matrix:

    int8        N·K codes of 8 bits, and N float32 row maxima
    nf4, fp4    N·K / 2 bytes, B float32 block maxima, the table of 16 float32 values (one per layer)
    …-dq        N·K / 2 bytes, B block maxima in 8 bits, ceil(B / 256) float32 maxima of those,
                one float32 mean, both tables (16 and 256 float32 values)

int8 also quantizes activations per token, and multiplies inputs above 6.0 (outliers) in floating point, as
the paper and transformers do by default. The 4-bit formats dequantize the weight and multiply in floating
point.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qcore.base.progress import Progress
from qcore.engines import EngineInfo, Variant, register
from qcore.engines.linears import Converted, importing, replace_linears, unchanged
from qcore.recipes import Recipe
from qcore.recipes.ledger import LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INFO = EngineInfo(
    "bitsandbytes",
    title="bitsandbytes",
    library="bitsandbytes",
    install="bitsandbytes",
    recipes={
        "bnb-int8": Variant(
            "int8",
            "bitsandbytes LLM.int8(): weights per channel, activations 8-bit, outliers in floating point",
            8.1,
            "int8",
            60_000_000,
        ),
        "bnb-nf4": Variant("nf4", "bitsandbytes NF4, blocks of 64", 4.5, "nf4-g64", 220_000_000),
        "bnb-nf4-dq": Variant(
            "nf4-dq", "bitsandbytes NF4 with double quantization, as in QLoRA", 4.2, "nf4-g64-dq", 220_000_000
        ),
        "bnb-fp4": Variant("fp4", "bitsandbytes FP4, blocks of 64", 4.5, "fp4-g64", 220_000_000),
        "bnb-fp4-dq": Variant(
            "fp4-dq", "bitsandbytes FP4 with double quantization", 4.2, "fp4-g64-dq", 220_000_000
        ),
    },
    loaded_bytes=255_000_000,
    logged=(
        # an optional kernel from the hub for processors with AVX-512; the library falls back to its own
        ("bitsandbytes.backends.cpu.ops", r"Failed to load CPU gemm_4bit_forward from kernels-community"),
        # one line per layer and token; the cast is part of LLM.int8()
        ("bitsandbytes.autograd._functions", r"MatMul8bitLt: inputs will be cast"),
    ),
    color="#dc7d2a",
)

OUTLIERS = 6.0
BLOCK = 64
PACKED_ROWS = 32


@register(INFO)
def apply(model: PreTrainedModel, recipe: Recipe, progress: Progress, quantize=None) -> list[LedgerRow]:
    """Quantize the linear layers of `model` in place to the recipe's variant: int8, nf4, nf4-dq, fp4 or
    fp4-dq."""
    with importing("bitsandbytes"):
        import bitsandbytes  # noqa: F401
    variant, _, double = recipe.engine.variant.partition("-")
    convert = _int8 if variant == "int8" else partial(_four_bits, kind=variant, double_quant=double == "dq")
    return replace_linears(model, recipe, progress, "bitsandbytes", convert)


def _int8(linear: nn.Linear) -> Converted:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    new = Linear8bitLt(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        has_fp16_weights=False,
        threshold=OUTLIERS,
        device="meta",
    )
    # The library quantizes in `to`, so it is called even if the weight is already on its device.
    made: Any = Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    weight = made.to(linear.weight.device)
    if weight.dtype != torch.int8 or weight.SCB is None:
        raise unchanged("bitsandbytes", f"its weight is {weight.dtype}")
    new.weight, new.bias = weight, linear.bias
    return Converted(new.train(linear.training), (weight.data, weight.SCB), "bnb-int8")


def _four_bits(linear: nn.Linear, kind: str, double_quant: bool) -> Converted:
    from bitsandbytes.nn import Linear4bit, Params4bit

    new = Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        compress_statistics=double_quant,
        quant_type=kind,
        device="meta",
    )
    made: Any = Params4bit(
        linear.weight.data,
        requires_grad=False,
        blocksize=BLOCK,
        compress_statistics=double_quant,
        quant_type=kind,
        module=new,
    )
    weight = made.to(linear.weight.device)
    state = weight.quant_state
    if weight.dtype != torch.uint8 or state is None or state.nested is not double_quant:
        raise unchanged("bitsandbytes", f"its weight is {weight.dtype}")
    new.weight, new.bias = weight, linear.bias
    if (
        linear.out_features % PACKED_ROWS
    ):  # the library's bfloat16 kernel packs 32 rows, and fails for other numbers
        new.support_avx512bf16_for_cpu = False
    parts = [weight.data, state.absmax, state.code]
    if state.nested:
        parts += [state.offset, state.state2.absmax, state.state2.code]
    return Converted(new.train(linear.training), tuple(parts), f"bnb-{kind}-g{BLOCK}{'-dq' * double_quant}")

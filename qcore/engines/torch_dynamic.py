"""torch.ao `quantize_dynamic`, PyTorch's first quantizer: int8 weights with one scale per tensor, activations
quantized per call.

Stored for N outputs and K inputs: N·K codes of 8 bits, one float32 scale, one int32 zero point. (The N sums
that the kernel derives from the codes when it packs them are not counted.) By the library's default the
output head is quantized as well; a tied embedding is unchanged, and the head becomes a separate copy. Runs on
CPU only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.base.errors import UnavailableError
from qcore.base.progress import Progress
from qcore.engines import EngineInfo, Variant, missing, register
from qcore.engines.linears import Converted, importing, replace_linears, unchanged
from qcore.recipes import Recipe
from qcore.recipes.ledger import LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INFO = EngineInfo(
    "torch_dynamic",
    title="torch.ao",
    library="torch.ao.quantization",
    install="torch",
    recipes={
        "torch-dynamic-int8": Variant(
            "int8",
            "torch.ao quantize_dynamic: one scale per tensor, the head included",
            8.1,
            "int8",
            60_000_000,
        )
    },
    loaded_bytes=20_000_000,
    quantizes_head=True,
    color="#ab8f12",
)

HEAD = "torch.ao quantizes the output head by default."


def available() -> str | None:
    """Return None, or the reason why torch's quantized kernels cannot be used here."""
    if reason := missing(INFO):
        return reason
    if not _engines():
        return (
            "This build of PyTorch has no quantized kernels (fbgemm or qnnpack), "
            "so torch-dynamic-int8 cannot run."
        )
    return None


@register(INFO, available)
def apply(model: PreTrainedModel, recipe: Recipe, progress: Progress, quantize=None) -> list[LedgerRow]:
    """Quantize the linear layers and the head of `model` in place. Raise `UnavailableError` if the model is
    not on the CPU."""
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise UnavailableError(
            f"torch.ao's dynamic quantization runs on the CPU only, and the model is on {device}. "
            "Use device cpu."
        )
    with importing("torch.ao"):
        from torch.ao.nn.quantized.dynamic import Linear
        from torch.ao.quantization import quantize_dynamic
    if torch.backends.quantized.engine not in _engines():
        torch.backends.quantized.engine = _engines()[0]

    def convert(linear: nn.Linear) -> Converted:
        holder = quantize_dynamic(nn.Sequential(linear.eval()), {nn.Linear}, dtype=torch.qint8, inplace=True)
        new = holder[0]
        if not isinstance(new, Linear):
            raise unchanged("torch.ao", f"it is a {type(new).__name__}")
        codes = new.weight().int_repr()
        if codes.dtype != torch.int8 or new.weight().qscheme() != torch.per_tensor_affine:
            raise unchanged("torch.ao", f"its weight is {new.weight().dtype}")
        return Converted(new, (codes,), recipe.name, extra_bytes=4 + 4)

    head = recipe.modules.head if recipe.modules.head != "keep" else "same"
    recipe = replace(recipe, modules=replace(recipe.modules, head=head))
    return replace_linears(model, recipe, progress, "torch.ao", convert, notes={"head": HEAD})


def _engines() -> list[str]:
    return [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]

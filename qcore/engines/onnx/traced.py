"""A model's modules in the form that ONNX stores, installed before the model is traced.

    nn.Linear, Conv1D     MatMul with the weight as (inputs, outputs), as ONNX and its quantizers expect
    QuantLinear           com.microsoft MatMulNBits with the same codes, scales and zero points
    QuantEmbedding        a look-up of codes, then scaling

MatMulNBits holds blocks of 16 to 256 inputs (a power of two) of 4 or 8 bits:

    codes       uint8    (N, blocks, block · bits / 8)     low bits first
    scale       float32  (N, blocks)                       the format's float16, widened
    zero_point  uint8    (N, ceil(blocks · bits / 8))      rows of whole bytes; absent if all are 2^(bits − 1)

Codes of fewer than 4 bits are stored in 4 bits, those of 5 to 7 in 8. A group of a size that is not a block
size (a whole channel, 96 inputs) becomes several blocks with the same scale: more bytes, the same values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from qcore.base.errors import InputError
from qcore.formats.packing import pack
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.linear import is_linear
from qcore.layers.modules import QuantEmbedding, QuantExperts, QuantizedModule, QuantLinear
from qcore.layers.text_part import output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
INT8_PRODUCTS = 4  # MatMulNBits' accuracy level: 8-bit activations with one scale per block
_LEVELS = {
    "fp32": 0,
    "int16": 0,
    "int8-block": INT8_PRODUCTS,
}  # int16 becomes exact, because ONNX Runtime has no kernel for it


def trace(model: PreTrainedModel) -> None:
    """Replace the modules of `model` in place by those above. Raise `InputError` for a module without an ONNX
    form."""
    held: dict[int, tuple] = {}  # a tied pair has one
    head = output_head(model)
    tied = head is not None and getattr(head, "weight", None) is model.get_input_embeddings().weight
    new: nn.Module
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if isinstance(module, QuantExperts):
            raise InputError(
                "A mixture of experts cannot be exported to ONNX: its experts are selected at run time."
            )
        if isinstance(module, QuantLinear):
            new = NBitsLinear(_blocks(module, held, name), module.bias, _level(module, name))
        elif isinstance(module, QuantEmbedding):
            new = NBitsEmbedding(_blocks(module, held, name), module.embed_scale)
        elif type(module) is Conv1D:
            new = FloatLinear(module.weight.detach(), module.bias)
        elif is_linear(module) and not (tied and module is head):
            new = FloatLinear(module.weight.detach().T.contiguous(), module.bias)
        else:
            continue
        setattr(model.get_submodule(parent), last, new)


class FloatLinear(nn.Module):
    """x · W + bias with W as (inputs, outputs)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class Blocks(nn.Module):
    """A `QuantizedTensor` in MatMulNBits' layout."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None

    def __init__(self, weight: QuantizedTensor):
        super().__init__()
        self.shape, self.bits = weight.shape, 4 if weight.format.bits <= 4 else 8
        codes, scale, zero, self.size = blocks(weight)
        self.register_buffer("codes", pack(codes, self.bits))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", _zero_bytes(zero, self.bits))


class NBitsLinear(nn.Module):
    """MatMulNBits, then the bias. `level` is the operator's accuracy level. The module can be traced, but not
    run."""

    def __init__(self, weight: Blocks, bias: torch.Tensor | None, level: int):
        super().__init__()
        self.weight, self.bias, self.level = weight, bias, level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        weight = self.weight
        outputs, inputs = weight.shape
        product = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, weight.codes, weight.scale, weight.zero_point),
            {
                "K": inputs,
                "N": outputs,
                "bits": weight.bits,
                "block_size": weight.size,
                "accuracy_level": self.level,
            },
            dtype=x.dtype,
            shape=(*x.shape[:-1], outputs),
            version=1,
        )
        return product if self.bias is None else product + self.bias


class NBitsEmbedding(nn.Module):
    """Embedding that looks up rows of codes, then scales them, and multiplies them by `embed_scale`."""

    def __init__(self, weight: Blocks, embed_scale: float = 1.0):
        super().__init__()
        self.weight, self.embed_scale = weight, embed_scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) -> (..., size of the embedding), float32."""
        weight = self.weight
        codes, scale = weight.codes[ids], weight.scale[ids]
        points = None if weight.zero_point is None else weight.zero_point[ids]
        if weight.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
            if points is not None:
                points = torch.stack((points & 15, points >> 4), dim=-1).flatten(-2)[..., : scale.shape[-1]]
        zero = float(1 << (weight.bits - 1)) if points is None else points.float().unsqueeze(-1)
        rows = ((codes.float() - zero) * scale.unsqueeze(-1)).flatten(-2)[..., : weight.shape[1]]
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale


def blocks(weight: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Return codes uint8 (N, blocks, size), scale float32 (N, blocks), zero point uint8 (N, blocks) and the
    block size of `weight` (N, K).

    The last block is padded with codes that are never multiplied. Raise `InputError` for a format that
    MatMulNBits does not support.
    """
    format, columns = weight.format, weight.shape[1]
    if not format.even or format.affine or format.signed:
        what = "types of llama.cpp and MLX" if format.even else "a table of values"
        raise InputError(
            f"{format.label} is {what}, and ONNX Runtime's MatMulNBits supports integer grids only. "
            "Use int4-g64 or int8."
        )
    if format.affine:
        raise InputError(
            f"{format.label} has float minimums, and ONNX Runtime's MatMulNBits supports integer zero points "
            "only. Use int4-g64 or int8."
        )
    size = block_size(columns, format.group_size)
    codes = weight.unpacked_codes()
    codes = pad(codes, (0, -columns % size)).unflatten(1, (-1, size))
    count = codes.shape[1]
    repeats = count if format.group_size is None else format.group_size // size
    scale, zero = weight.scales(), weight.zero_points()
    if scale is None:
        raise InputError(f"{format.label} has no scales, and ONNX Runtime's MatMulNBits needs them.")
    zero = zero if isinstance(zero, torch.Tensor) else torch.full_like(scale, zero)
    scale, zero = (part.repeat_interleave(repeats, dim=1)[:, :count].contiguous() for part in (scale, zero))
    return codes, scale, zero.to(torch.uint8), size


def _zero_bytes(zero: torch.Tensor, bits: int) -> torch.Tensor | None:
    """Return the zero points uint8 (N, blocks) as stored; None if all are 2^(bits − 1), the operator's
    default."""
    if bool((zero == 1 << (bits - 1)).all()):
        return None
    if bits == 8:
        return zero
    zero = pad(zero, (0, zero.shape[1] % 2))
    return zero[:, 0::2] | (zero[:, 1::2] << 4)


def block_size(columns: int, group_size: int | None) -> int:
    """Return the largest block size that divides a group; for a whole channel of `columns` inputs, one
    without padding, or else 32. Raise `InputError` for a group size that has none."""
    whole = columns if group_size is None else group_size
    size = min(whole & -whole, LARGEST_BLOCK)
    if size >= SMALLEST_BLOCK:
        return size
    if group_size is None:
        return 32
    raise InputError(
        f"Groups of {group_size} inputs cannot be exported: MatMulNBits takes multiples of {SMALLEST_BLOCK}."
    )


def _blocks(module: QuantizedModule, held: dict, name: str) -> Blocks:
    module.restore()
    weight = module.quantized
    key = weight.codes.data_ptr()
    if key not in held:
        try:
            held[key] = (Blocks(weight), weight)  # keep the weight alive, so that its address is not reused
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return held[key][0]


def _level(module: QuantLinear, name: str) -> int:
    if module.activations not in _LEVELS:
        raise InputError(
            f"{name}: MatMulNBits does not support activations with one scale per token. "
            "Export a recipe without -dynamic, or with -a8 (one scale per block)."
        )
    return _LEVELS[module.activations]

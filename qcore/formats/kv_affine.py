"""Affine quantization per group: x ≈ smallest + scale · code, code in 0 … 2^bits − 1.

`scale` and `smallest` are float16. `smallest` is rounded down and `scale` up, so the grid covers the group
and no number is off by more than half a step. The smallest value is stored as a number and not as a zero
point, because the channels of keys can lie far from zero.
"""

from dataclasses import dataclass

import torch

from qcore.base.errors import RunError
from qcore.formats.packing import pack, unpack

_ULP, _TINY = (
    2.0**-10,
    2.0**-24,
)  # float16: the largest relative distance of neighbours, and the smallest positive number


@dataclass(frozen=True)
class Codes:
    """`packed` (..., bytes) holds codes (..., channels); `scale` and `smallest` are float16 and broadcast
    over each group."""

    packed: torch.Tensor
    scale: torch.Tensor
    smallest: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all three tensors."""
        return self.packed.nbytes + self.scale.nbytes + self.smallest.nbytes


def quantize(x: torch.Tensor, bits: int, dim: int) -> Codes:
    """Return the codes of `x` (..., channels), with one group along `dim`. The codes are packed along the
    last dimension, whose size must be a multiple of 8; `scale` and `smallest` have the shape of `x` with
    `dim` of size 1.

    Raise `RunError` for numbers that are not finite or beyond float16.
    """
    x = x.float()
    low, high = x.aminmax(dim=dim, keepdim=True)
    smallest = low.half()
    smallest = torch.where(smallest > low, (low - low.abs() * _ULP - _TINY).half(), smallest)
    step = (high - smallest.float()) / (2**bits - 1)
    scale = step.half()
    scale = torch.where(scale.float() < step, (step * (1 + _ULP) + _TINY).half(), scale)
    if not (torch.isfinite(scale).all() and torch.isfinite(smallest).all()):
        raise RunError(
            "A key or value is not a finite number of float16's range, so the cache cannot be quantized. "
            "Use an unquantized cache."
        )
    divisor = torch.where(scale == 0, 1, scale).float()
    codes = ((x - smallest.float()) / divisor).round_().clamp_(0, 2**bits - 1).to(torch.uint8)
    return Codes(pack(codes, bits), scale, smallest)


def dequantize(codes: Codes, bits: int, channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Invert `quantize`, to within half a step. Return (..., `channels`) in `dtype`."""
    numbers = unpack(codes.packed, bits, channels).to(torch.float32)
    return numbers.mul_(codes.scale.float()).add_(codes.smallest.float()).to(dtype)

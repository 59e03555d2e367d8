"""QuantizedTensor: a quantized weight as it is stored, and the one place that says what its numbers mean.

For a weight of N outputs and K inputs in G = ceil(K / group_size) groups (G = 1 per channel):

    codes       uint8    (N, packed_width(K, bits))   see packing.py
    scale       float16  (N, G)                       absent for per-channel kmeans4
    zero_point  uint8    (packed_width(N·G, bits),)   asymmetric uniform formats only
    codebook    float32  (16,) fixed, float16 (16,) per group or (N, 16) per channel if learned

Double quantization replaces `scale` by 8-bit codes in blocks of 256 scales, taken row after row:

    scale_codes uint8    (N, G)
    scale_range float32  (ceil(N·G / 256), 2)         lowest scale of the block, and the step; scales are rounded to float16

The last group may be shorter than the others; K needs not be a multiple of anything.
"""

from dataclasses import dataclass, replace

import torch

from qcore.base.errors import InputError
from qcore.formats.codebook import ENTRIES, Codebook
from qcore.formats.packing import pack, packed_width, unpack
from qcore.formats.uniform import Uniform

Format = Uniform | Codebook
SCALES_PER_BLOCK = 256


def group_count(columns: int, group_size: int | None) -> int:
    """G, the number of groups in a row of `columns` inputs."""
    return 1 if group_size is None else -(-columns // group_size)


def spread(per_group: torch.Tensor, columns: int, group_size: int | None) -> torch.Tensor:
    """Repeat a value per group (N, G) for each input of its group: (N, K), or (N, 1) per channel, which
    broadcasts."""
    return per_group if group_size is None else per_group.repeat_interleave(group_size, dim=1)[:, :columns]


@dataclass(frozen=True)
class QuantizedTensor:
    """The parts above. `shape` is (N, K), the logical shape. Build one with `from_codes`; read it with
    `dequantize`."""

    format: Format
    shape: tuple[int, int]
    codes: torch.Tensor
    scale: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None
    codebook: torch.Tensor | None = None
    scale_codes: torch.Tensor | None = None
    scale_range: torch.Tensor | None = None

    PARTS = ("codes", "scale", "zero_point", "codebook", "scale_codes", "scale_range")

    @classmethod
    def from_codes(
        cls,
        format: Format,
        codes: torch.Tensor,
        scale: torch.Tensor | None = None,
        zero_point: torch.Tensor | None = None,
        codebook: torch.Tensor | None = None,
    ) -> "QuantizedTensor":
        """Pack unpacked uint8 `codes` (N, K) with their `scale` (N, G), `zero_point` (N, G) and `codebook`.

        `scale` is stored as float16 or, with double quantization, must come from `round_scale`, which makes
        that loss first so that a method can choose codes for the scales that will be stored. Raises
        `InputError` if a scale overflows float16 or is NaN.
        """
        return cls.from_packed(
            format, tuple(codes.shape), pack(codes, format.bits), scale, zero_point, codebook
        )

    @classmethod
    def from_packed(
        cls,
        format: Format,
        shape: tuple[int, int],
        codes: torch.Tensor,
        scale: torch.Tensor | None = None,
        zero_point: torch.Tensor | None = None,
        codebook: torch.Tensor | None = None,
    ) -> "QuantizedTensor":
        """`from_codes` for a weight of `shape` (N, K) whose `codes` (N, packed_width(K, bits)) are packed
        already."""
        stored = cls(format, shape, codes, codebook=codebook)
        if zero_point is not None:
            stored = replace(stored, zero_point=pack(zero_point.flatten(), format.bits))
        if scale is None:
            return stored
        if format.double_quant:
            scale_codes, scale_range = _quantize_scale(scale)
            return replace(stored, scale_codes=scale_codes, scale_range=scale_range)
        return replace(stored, scale=_half(scale))

    def with_scales(self, scale: torch.Tensor) -> "QuantizedTensor":
        """The same codes with other scales (N, G), which are rounded to what the format stores."""
        if self.format.double_quant:
            scale_codes, scale_range = _quantize_scale(scale)
            return replace(self, scale_codes=scale_codes, scale_range=scale_range)
        return replace(self, scale=_half(scale))

    def parts(self) -> dict[str, torch.Tensor]:
        """The tensors that are stored, by name."""
        return {name: part for name in self.PARTS if (part := getattr(self, name)) is not None}

    def is_stored(self, name: str) -> bool:
        """Whether the part counts and is saved. A fixed codebook is part of the format's definition and costs
        nothing."""
        return not (
            name == "codebook" and isinstance(self.format, Codebook) and self.format.fixed is not None
        )

    @property
    def nbytes(self) -> int:
        """Stored bytes of all parts."""
        return sum(part.nbytes for name, part in self.parts().items() if self.is_stored(name))

    @property
    def bits_per_weight(self) -> float:
        """8 · stored bytes / number of logical weights."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def unpacked_codes(self) -> torch.Tensor:
        """The codes as uint8 (N, K)."""
        return unpack(self.codes, self.format.bits, self.shape[1])

    def scales(self, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor | None:
        """The scales as float32 (N, G) or of some rows, double quantization undone; None where the format has
        none."""
        if self.scale is not None:
            return self.scale[rows].float()
        if self.scale_codes is None:
            return None
        return _dequantize_scale(self.scale_codes, self.scale_range)[rows]

    def zero_points(self) -> torch.Tensor | float:
        """The zero points as float32 (N, G), or the one number that a symmetric format uses."""
        if self.zero_point is None:
            return float(1 << (self.format.bits - 1))
        groups = group_count(self.shape[1], self.format.group_size)
        return unpack(self.zero_point, self.format.bits, self.shape[0] * groups).view(-1, groups).float()

    def dequantize(
        self, dtype: torch.dtype = torch.float32, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The weight (N, K) that the codes stand for, or only the given `rows` (R,) of it as (R, K)."""
        pick = slice(None) if rows is None else rows
        columns, size = self.shape[1], self.format.group_size
        codes, scale = unpack(self.codes[pick], self.format.bits, columns), self.scales(pick)
        if isinstance(self.format, Uniform):
            zero = self.zero_points()
            zero = spread(zero[pick], columns, size) if isinstance(zero, torch.Tensor) else zero
            return ((codes.float() - zero) * spread(scale, columns, size)).to(dtype)
        table = self.codebook.float()
        values = table[pick].gather(1, codes.long()) if table.ndim == 2 else table[codes.int()]
        return (values if scale is None else values * spread(scale, columns, size)).to(dtype)


def format_bytes(format: Format, rows: int, columns: int) -> int:
    """Stored bytes of one weight (rows outputs, columns inputs): what `QuantizedTensor.nbytes` will be."""
    groups = group_count(columns, format.group_size)
    learned = isinstance(format, Codebook) and format.fixed is None
    total = rows * packed_width(columns, format.bits)
    if format.double_quant:
        total += rows * groups + 8 * -(-rows * groups // SCALES_PER_BLOCK)
    elif not (learned and format.group_size is None):
        total += 2 * rows * groups
    if isinstance(format, Uniform) and not format.symmetric:
        total += packed_width(rows * groups, format.bits)
    if learned:
        total += 2 * ENTRIES * (rows if format.group_size is None else 1)
    return total


def round_scale(scale: torch.Tensor, format: Format) -> torch.Tensor:
    """The float32 scales (N, G) that `format` will really hold for the wished `scale`: what a method must
    choose codes for."""
    return _dequantize_scale(*_quantize_scale(scale)) if format.double_quant else _half(scale).float()


def _half(scale: torch.Tensor) -> torch.Tensor:
    half = scale.to(torch.float16)
    if half.isfinite().all():
        return half
    if scale.isnan().any():
        raise InputError(
            "The weights hold NaN, so they cannot be quantized. Download the model again, or train it with care."
        )
    raise InputError(
        f"A group of weights is too large to quantize: its scale {scale.max():.3g} exceeds 65504, the largest float16."
    )


def _quantize_scale(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit codes (N, G) and per-block (lowest, step) of non-negative scales, in blocks of 256."""
    _half(scale)  # refuses what cannot be held
    flat = scale.float().flatten()
    blocks = -(-flat.numel() // SCALES_PER_BLOCK)
    filled = torch.cat((flat, flat[-1:].expand(blocks * SCALES_PER_BLOCK - flat.numel()))).view(
        blocks, SCALES_PER_BLOCK
    )
    lowest, highest = filled.aminmax(dim=1, keepdim=True)
    step = (highest - lowest) / 255
    codes = (
        ((filled - lowest) / step.clamp_min(torch.finfo(torch.float32).tiny))
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )
    return codes.flatten()[: flat.numel()].view(scale.shape), torch.cat((lowest, step), dim=1)


def _dequantize_scale(codes: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    lowest, step = (
        part.repeat_interleave(SCALES_PER_BLOCK)[: codes.numel()].view(codes.shape)
        for part in ranges.unbind(1)
    )
    return _half(
        codes.float() * step + lowest
    ).float()  # as kernels hold them, so that both mean the same numbers

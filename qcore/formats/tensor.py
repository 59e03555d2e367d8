"""QuantizedTensor: a quantized weight as stored, and the definition of its numbers.

For a weight of N outputs and K inputs in G = ceil(K / group_size) groups (G = 1 per channel):

    codes       uint8    (N, packed_width(K, bits))   see packing.py
    scale       float16  (N, G)                       absent for per-channel kmeans4
    zero_point  uint8    (packed_width(N·G, bits),)   asymmetric uniform formats only
    codebook    float32  (16,) fixed, float16 (16,) per group or (N, 16) per channel if learned

Double quantization replaces `scale` by 8-bit codes in blocks of 256 scales, taken row after row:

    scale_codes uint8    (N, G)
    scale_range float32  (ceil(N·G / 256), 2)         lowest scale and step per block; scales become float16

Affine formats store a float minimum per group in place of a zero point:

    minimum     float16  (N, G)

K-quants (`k_quants.py`) quantize scales and minimums within super-blocks of 256 inputs, S per row:

    scale       float16  (N, S)                       unit of the scale codes
    scale_codes uint8    (N, packed_width(G, b))      b is 4, 6 or 8
    minimum     float16  (N, S)                       unit of the minimum codes; affine K-quants only
    min_codes   uint8    (N, packed_width(G, b))

The last group may be shorter than the others: K may be any number.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from qcore.formats.kinds import Format
from qcore.formats.packing import pack, unpack


def spread(per_group: torch.Tensor, columns: int, group_size: int | None) -> torch.Tensor:
    """Repeat values per group (N, G) for each input of the group. Return (N, K), or (N, 1) per channel, which
    broadcasts."""
    if group_size is None:
        return per_group
    return per_group.repeat_interleave(min(group_size, columns), dim=1)[:, :columns]


@dataclass(frozen=True)
class QuantizedTensor:
    """The parts listed in the module docstring; `shape` is the logical shape (N, K). `from_codes` builds one,
    `dequantize` reads it."""

    format: Format
    shape: tuple[int, int]
    codes: torch.Tensor
    scale: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None
    codebook: torch.Tensor | None = None
    scale_codes: torch.Tensor | None = None
    scale_range: torch.Tensor | None = None
    minimum: torch.Tensor | None = None
    min_codes: torch.Tensor | None = None

    PARTS = ("codes", "scale", "zero_point", "codebook", "scale_codes", "scale_range", "minimum", "min_codes")

    @classmethod
    def from_codes(
        cls,
        format: Format,
        codes: torch.Tensor,
        scale: torch.Tensor | None = None,
        zero_point: torch.Tensor | None = None,
        codebook: torch.Tensor | None = None,
        minimum: torch.Tensor | None = None,
    ) -> "QuantizedTensor":
        """Pack unpacked uint8 `codes` (N, K) with their `scale` (N, G), `zero_point` (N, G), `minimum` (N, G)
        and `codebook`.

        `scale` and `minimum` are stored as float16. If the format quantizes them they must come from
        `round_scale` and `round_minimum`, so that a method can choose codes for what will be stored. Raise
        `InputError` if one overflows float16 or is NaN.
        """
        shape = (codes.shape[0], codes.shape[1])
        packed = pack(codes, format.bits)
        return cls.from_packed(format, shape, packed, scale, zero_point, codebook, minimum)

    @classmethod
    def from_packed(
        cls,
        format: Format,
        shape: tuple[int, int],
        codes: torch.Tensor,
        scale: torch.Tensor | None = None,
        zero_point: torch.Tensor | None = None,
        codebook: torch.Tensor | None = None,
        minimum: torch.Tensor | None = None,
    ) -> "QuantizedTensor":
        """Build a weight of `shape` (N, K) from `codes` (N, packed_width(K, bits)) that are packed already;
        otherwise as `from_codes`."""
        stored = cls(format, shape, codes, codebook=codebook)
        if zero_point is not None:
            stored = replace(stored, zero_point=pack(zero_point.flatten(), format.bits))
        if minimum is not None:
            lowest: dict[str, Any] = format.encode_minimum(minimum)
            stored = replace(stored, **lowest)
        return stored if scale is None else stored.with_scales(scale)

    def with_scales(self, scale: torch.Tensor, minimum: torch.Tensor | None = None) -> "QuantizedTensor":
        """Return the same codes with other scales (N, G), and with other minimums (N, G) of an affine format
        if given, rounded to the format's precision."""
        parts = self.format.encode_scale(scale)
        lowest: dict[str, Any] = {} if minimum is None else self.format.encode_minimum(minimum)
        return replace(
            self,
            scale=parts.get("scale"),
            scale_codes=parts.get("scale_codes"),
            scale_range=parts.get("scale_range"),
            **lowest,
        )

    def parts(self) -> dict[str, torch.Tensor]:
        """Return the stored tensors by name."""
        return {name: part for name in self.PARTS if (part := getattr(self, name)) is not None}

    def is_stored(self, name: str) -> bool:
        """Return whether the part is saved and counted. A fixed codebook belongs to the format's definition
        and is not."""
        return name != "codebook" or self.format.learned

    @property
    def nbytes(self) -> int:
        """Stored bytes of all parts."""
        return sum(part.nbytes for name, part in self.parts().items() if self.is_stored(name))

    @property
    def bits_per_weight(self) -> float:
        """8 · stored bytes / number of logical weights."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def unpacked_codes(self) -> torch.Tensor:
        """Return the codes as uint8 (N, K)."""
        return unpack(self.codes, self.format.bits, self.shape[1])

    def scales(self, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor | None:
        """Return the dequantized scales as float32 (N, G), or those of some rows; None if the format has
        none."""
        if not self.format.scaled:
            return None
        return self.format.decode_scale(self.parts(), rows)

    def minimums(self, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor | None:
        """Return the dequantized minimums as float32 (N, G), or those of some rows; None if the format is not
        affine."""
        if not self.format.affine:
            return None
        return self.format.decode_minimum(self.parts(), rows)

    def zero_points(self) -> torch.Tensor | float:
        """Return the zero points as float32 (N, G), or the single zero point of all groups: the middle code
        of a symmetric format, 0 of an affine one."""
        if self.format.affine:
            return 0.0
        if self.zero_point is None:
            return float(1 << (self.format.bits - 1))
        groups = self.format.groups(self.shape[1])
        return unpack(self.zero_point, self.format.bits, self.shape[0] * groups).view(-1, groups).float()

    @property
    def table(self) -> torch.Tensor:
        """The units of the codes, float32 (levels,) or (N, levels), of a table format."""
        if self.codebook is None:
            raise ValueError(f"{self.format.label} has no table: its grid is even")
        return self.codebook.float()

    def group_values(self, row: int, group: int) -> torch.Tensor:
        """Return the dequantized values of all codes of one group of one row, ascending float32."""
        if self.format.even:
            zero = self.zero_points()
            zero = zero[row, group] if isinstance(zero, torch.Tensor) else zero
            units = torch.arange(self.format.lowest, self.format.levels) - zero
        else:
            units = (self.table[row] if self.table.ndim == 2 else self.table).sort().values
        scale, minimum = self.scales(), self.minimums()
        values = units if scale is None else units * scale[row, group]
        return (values if minimum is None else values + minimum[row, group]).sort().values

    def dequantize(
        self, dtype: torch.dtype = torch.float32, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the weight (N, K), or only its `rows` (R,) as (R, K), in `dtype`."""
        pick = slice(None) if rows is None else rows
        columns, size = self.shape[1], self.format.group_size
        codes, scale = unpack(self.codes[pick], self.format.bits, columns), self.scales(pick)
        if self.format.even:
            zero = self.zero_points()
            zero = spread(zero[pick], columns, size) if isinstance(zero, torch.Tensor) else zero
            values = codes.float() - zero
        else:
            table = self.table
            values = table[pick].gather(1, codes.long()) if table.ndim == 2 else table[codes.int()]
        values = values if scale is None else values * spread(scale, columns, size)
        minimum = self.minimums(pick)
        return (values if minimum is None else values + spread(minimum, columns, size)).to(dtype)


def round_scale(scale: torch.Tensor, format: Format) -> torch.Tensor:
    """Return the float32 scales (N, G) that `format` will store for `scale`. A method must choose codes for
    these."""
    return format.decode_scale(format.encode_scale(scale))


def stretched(
    scale: torch.Tensor, minimum: torch.Tensor | None, gain: torch.Tensor, format: Format
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scales and minimums of a grid that is stretched by `gain`, all (N, G) or all (G, N): about 0, or
    about the middle of an affine grid."""
    if minimum is None:
        return scale * gain, None
    middle = (format.levels - 1) / 2
    return scale * gain, minimum + (1 - gain) * (middle * scale)


def round_minimum(minimum: torch.Tensor, format: Format) -> torch.Tensor:
    """Return the float32 minimums (N, G) that an affine `format` will store for `minimum`."""
    return format.decode_minimum(format.encode_minimum(minimum))

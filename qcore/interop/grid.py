"""Even grids as other projects store them: integer codes with one scale and one integer zero point per group.

    w = scale · (code − zero)          code, zero in 0 … 2^bits − 1

GPTQ, AWQ, compressed-tensors and bitsandbytes' int8 all hold these numbers and differ only in their layout. A
`Grid` is the common, unpacked form; `from_weight` and `to_weight` convert it from and to a `QuantizedTensor`
without changing a code. All of them pack codes as one little-endian stream of bits, as `formats.packing`
does, in words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import SMALLEST_GROUP, Format, packed_width
from qcore.formats.packing import pack, unpack
from qcore.formats.signed import Signed
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform

WORD = 4  # bytes


@dataclass(frozen=True)
class Grid:
    """`codes` uint8 (N, K); `scale` (N, G), any float dtype; `zero` int16 (N, G); `group_size` None for one
    group per row. `group_of` int64 (K,) is the group of each input where groups are not consecutive inputs
    (GPTQ's activation order)."""

    bits: int
    group_size: int | None
    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    group_of: torch.Tensor | None = None

    @classmethod
    def from_weight(cls, weight: QuantizedTensor) -> Grid:
        """Return the grid of `weight`, whose format must be `Uniform` or `Signed`. Scales are float16, or
        float32 if they were quantized again."""
        groups = weight.format.groups(weight.shape[1])
        scale = weight.scale if weight.scale is not None else weight.scales()
        zero = weight.zero_points()
        if not isinstance(zero, torch.Tensor):
            zero = torch.full((weight.shape[0], groups), zero)
        assert scale is not None  # uniform formats have scales
        return cls(
            weight.format.bits, weight.format.group_size, weight.unpacked_codes(), scale, zero.to(torch.int16)
        )

    def to_weight(self, name: str) -> QuantizedTensor:
        """Return the weight with these codes. Scales are rounded to float16, a relative change of at most
        2^-11; float16 and almost all bfloat16 scales are kept exactly. `name` is for messages.

        The format is symmetric if every zero point is the middle of the grid and no code is 0, signed if a
        scale is negative, and otherwise asymmetric. Raise `InputError` for zero points outside of the grid,
        scales that float16 cannot hold, and groups that are not consecutive inputs.
        """
        if self.group_of is not None:
            raise InputError(
                f"{name} assigns inputs to groups out of order (activation order), which no format of qcore "
                "stores. It can only be dequantized."
            )
        low, high = int(self.zero.min()), int(self.zero.max())
        if low < 0 or high >= 1 << self.bits:
            wrong = low if low < 0 else high
            raise InputError(
                f"{name} has the zero point {wrong}, but {self.bits}-bit codes reach from 0 to "
                f"{(1 << self.bits) - 1}: it was probably written in another convention (GPTQ v1 stores zero "
                "points minus one)."
            )
        middle = 1 << (self.bits - 1)
        format: Format
        if low == high == middle and bool((self.scale < 0).any()):
            format = Signed(self.bits, self.group_size)
        else:
            symmetric = low == high == middle and bool((self.codes != 0).all())
            format = Uniform(self.bits, self.group_size, symmetric)
        zero = None if format.symmetric else self.zero.to(torch.uint8)
        return QuantizedTensor.from_codes(format, self.codes, stored_scale(self.scale, name), zero)

    def dequantize(self) -> torch.Tensor:
        """Return the weight, float32 (N, K), in any order of groups."""
        scale, zero = self.scale.float(), self.zero.float()
        if self.group_of is not None:
            scale, zero = scale[:, self.group_of], zero[:, self.group_of]
        elif self.group_size is not None:
            columns = self.codes.shape[1]
            scale, zero = (
                part.repeat_interleave(self.group_size, dim=1)[:, :columns] for part in (scale, zero)
            )
        return (self.codes.float() - zero) * scale


def stored_scale(scale: torch.Tensor, name: str) -> torch.Tensor:
    """Return `scale` rounded to float16. Raise `InputError` for a scale that is not finite, too large, or so
    small that it would lose more than the last of float16's digits."""
    rounded = scale.to(torch.float16)
    exact = scale.float()
    if not exact.isfinite().all():
        raise InputError(f"{name} has a scale that is not finite: the file is damaged.")
    wrong = (rounded.float() - exact).abs() > exact.abs() * 2.0**-10
    wrong &= exact.abs() > 2.0**-24  # smaller groups are zero in float16, and next to zero in the model
    if wrong.any():
        value = float(exact[wrong][0])
        raise InputError(
            f"{name} has the scale {value:.3g}, which float16 does not hold. It can only be dequantized."
        )
    return rounded


def to_words(packed: torch.Tensor) -> torch.Tensor:
    """Return uint8 (..., B) as int32 (..., ceil(B / 4)), padded with zeros."""
    if packed.shape[-1] % WORD:
        packed = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % WORD))
    # flat, because a contiguous matrix of one row may have any stride, which `view` refuses
    return packed.flatten().view(torch.int32).view(*packed.shape[:-1], -1)


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return uint8 codes (..., K) as int32 words (..., ceil(K · bits / 32)), one little-endian stream of bits
    per row."""
    words = to_words(pack(codes.contiguous(), bits))
    return words[..., : -(-codes.shape[-1] * bits // (8 * WORD))].contiguous()


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Invert `pack_words`: return uint8 codes (..., count). Raise `InputError` if `words` are too few."""
    if words.dtype not in (torch.int32, torch.uint32) or words.shape[-1] * 8 * WORD < count * bits:
        raise InputError(
            f"{count} codes of {bits} bits do not fit into the stored {words.dtype} {tuple(words.shape)}: "
            "the file is damaged."
        )
    stream = words.flatten().view(torch.uint8).view(*words.shape[:-1], -1)
    width = packed_width(count, bits)
    if stream.shape[-1] < width:
        stream = torch.nn.functional.pad(stream, (0, width - stream.shape[-1]))
    return unpack(stream[..., :width].contiguous(), bits, count)


def reason_against_uniform(
    format: Format, shape: tuple[int, int], *, target: str, bits: Collection[int], whole_groups: bool = True
) -> str | None:
    """Return why a weight of `format` and `shape` (N, K) is no even grid of `bits` that `target` can store,
    or None. The sentence names the nearest recipe."""
    if not isinstance(format, Uniform | Signed):
        nearest = f"int{min(bits, key=lambda each: (abs(each - format.bits), each))}"
        return (
            f"{target} stores integers with a scale and a zero point per group, but {format.label} is not "
            f"such a format. The nearest recipe is {nearest}-g{format.group_size or 64}."
        )
    if format.bits not in bits:
        width = min(bits, key=lambda each: (abs(each - format.bits), -each))
        near = Uniform(width, format.group_size, format.symmetric).label
        allowed = ", ".join(map(str, sorted(bits)))
        return f"{target} stores codes of {allowed} bits, not {format.bits}. The nearest recipe is {near}."
    size = format.group_size
    if whole_groups and size is not None and shape[1] % size:
        fits = max((d for d in (16, 32, 64, 128) if d <= size and shape[1] % d == 0), default=None)
        near = Uniform(format.bits, fits, format.symmetric).label
        return (
            f"{target} needs groups that divide the inputs, but {shape[1]} inputs are no multiple of {size}. "
            f"The nearest recipe is {near}."
        )
    return None


def need(parts: Mapping[str, torch.Tensor], name: str, dimensions: int) -> torch.Tensor:
    """Return the part called `name`. Raise `InputError` if it is missing or has another number of
    dimensions."""
    part = parts.get(name)
    if part is None:
        raise InputError(f"A quantized weight lacks its part {name!r}: the file is incomplete.")
    if part.ndim != dimensions:
        raise InputError(
            f"The part {name!r} of a quantized weight has {part.ndim} dimensions instead of {dimensions}: "
            "the file is damaged."
        )
    return part


def group_size_of(columns: int, groups: int, stated: int | None) -> int | None:
    """Return the group size of `groups` groups of `columns` inputs, as `stated` by the config (None or -1:
    one group per row). Raise `InputError` for a contradiction."""
    if stated is None or stated == -1:
        if groups == 1:
            return None
        raise InputError(
            f"The config states one scale per row, but a weight has {groups}: the file is damaged."
        )
    if not isinstance(stated, int) or stated < SMALLEST_GROUP or stated % SMALLEST_GROUP:
        raise InputError(f"The config states the group size {stated!r}, which is no positive multiple of 8.")
    if -(-columns // stated) != groups:
        raise InputError(
            f"{columns} inputs in groups of {stated} have {-(-columns // stated)} scales, but a weight has "
            f"{groups}: the file is damaged."
        )
    return stated

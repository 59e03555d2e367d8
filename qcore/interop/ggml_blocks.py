"""The byte layouts of ggml's quantized types, in both directions.

A row of K inputs is a sequence of blocks of 32 inputs, or of super-blocks of 256 inputs whose groups have
small integer scales. A block lists its fields one after the other:

    scale, minimum   one float16 each
    scales           the integer scales (and minimums) of a super-block's groups, packed as the type says
    low, high        the lower and the upper bits of the codes

Bits of codes lie in planes: `run` bytes hold the codes of the first `run` inputs in their lowest bits, those
of the next `run` inputs in the bits above, and so on. Codes are unsigned here; a signed type's zero is
subtracted by its format. Source: ggml's `ggml-common.h` and `ggml-quants.c`; the `gguf` package decodes the
same types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

BLOCK, SUPER_BLOCK = 32, 256
SIGN = (
    128  # int8 codes are stored as two's complement, which is the unsigned code with its highest bit flipped
)


@dataclass(frozen=True)
class Fields:
    """What the blocks of a weight of N outputs and K inputs hold: `codes` uint8 (N, K); `scale` and `minimum`
    float16 (N, blocks); `scale_codes` int8 or uint8 and `min_codes` uint8 (N, groups)."""

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None = None
    scale_codes: torch.Tensor | None = None
    min_codes: torch.Tensor | None = None


@dataclass(frozen=True)
class Planes:
    """`bits` of each code, in planes of `run` inputs."""

    bits: int
    run: int

    def bytes(self, inputs: int) -> int:
        """Return the bytes of a block of `inputs` codes."""
        return inputs * self.bits // 8

    def unfold(self, data: torch.Tensor) -> torch.Tensor:
        """Return the codes (..., inputs) of bytes (..., bytes)."""
        if self.bits == 8:
            return data
        runs, mask = data.unflatten(-1, (-1, self.run)), (1 << self.bits) - 1
        codes = data.new_empty(*runs.shape[:-1], 8 // self.bits, self.run)
        for plane in range(8 // self.bits):
            codes[..., plane, :] = (runs >> (plane * self.bits)) & mask
        return codes.flatten(-3)

    def fold(self, codes: torch.Tensor) -> torch.Tensor:
        """Invert `unfold` for codes below 2^bits."""
        if self.bits == 8:
            return codes
        planes = codes.unflatten(-1, (-1, 8 // self.bits, self.run))
        data = planes[..., 0, :].clone()
        for plane in range(1, 8 // self.bits):
            data |= planes[..., plane, :] << (plane * self.bits)
        return data.flatten(-2)


@dataclass(frozen=True)
class Scales:
    """How a super-block packs its `groups` integer scales into `bytes`. `unfold` returns (scale codes,
    minimum codes or None); `fold` is the inverse. The codes lie between `lowest` and `highest`."""

    groups: int
    bytes: int
    lowest: int
    highest: int
    unfold: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
    fold: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """A type's blocks: the number of inputs, the names of the fields in file order, and their packing."""

    inputs: int
    order: tuple[str, ...]
    low: Planes
    high: Planes | None = None
    scales: Scales | None = None
    signed: bool = False  # codes of 8 bits in two's complement

    @property
    def bits(self) -> int:
        """Bits per code."""
        return self.low.bits + (self.high.bits if self.high else 0)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each field, in file order."""
        known = {"scale": 2, "minimum": 2, "low": self.low.bytes(self.inputs)}
        if self.high:
            known["high"] = self.high.bytes(self.inputs)
        if self.scales:
            known["scales"] = self.scales.bytes
        return {name: known[name] for name in self.order}

    @property
    def bytes(self) -> int:
        """Bytes per block."""
        return sum(self.sizes().values())

    def read(self, data: torch.Tensor) -> Fields:
        """Return the fields of a weight's blocks, `data` uint8 (N, blocks · bytes)."""
        blocks = data.unflatten(-1, (-1, self.bytes))
        parts = dict(zip(self.order, blocks.split(list(self.sizes().values()), dim=-1), strict=True))
        codes = self.low.unfold(parts["low"])
        if self.high:
            codes = codes | (self.high.unfold(parts["high"]) << self.low.bits)
        if self.signed:
            codes = codes ^ SIGN
        scale_codes, min_codes = self.scales.unfold(parts["scales"]) if self.scales else (None, None)
        return Fields(
            codes.flatten(1),
            _halves(parts["scale"]),
            _halves(parts["minimum"]) if "minimum" in parts else None,
            None if scale_codes is None else scale_codes.flatten(1),
            None if min_codes is None else min_codes.flatten(1),
        )

    def write(self, fields: Fields) -> torch.Tensor:
        """Invert `read`."""
        codes = fields.codes.unflatten(-1, (-1, self.inputs))
        if self.signed:
            codes = codes ^ SIGN
        parts = {"scale": _bytes(fields.scale), "low": self.low.fold(codes & ((1 << self.low.bits) - 1))}
        if self.high:
            parts["high"] = self.high.fold(codes >> self.low.bits)
        if fields.minimum is not None:
            parts["minimum"] = _bytes(fields.minimum)
        if self.scales and fields.scale_codes is not None:
            minimums = fields.min_codes
            parts["scales"] = self.scales.fold(
                fields.scale_codes.unflatten(-1, (-1, self.scales.groups)),
                None if minimums is None else minimums.unflatten(-1, (-1, self.scales.groups)),
            )
        return torch.cat([parts[name] for name in self.order], dim=-1).flatten(1)


def _halves(data: torch.Tensor) -> torch.Tensor:
    """Return float16 (N, blocks) from bytes (N, blocks, 2)."""
    return data.contiguous().view(torch.float16).squeeze(-1)


def _bytes(halves: torch.Tensor) -> torch.Tensor:
    """Return bytes (N, blocks, 2) from float16 (N, blocks)."""
    return halves.to(torch.float16).unsqueeze(-1).contiguous().view(torch.uint8)


def _unfold_nibbles(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return data & 15, data >> 4


def _fold_nibbles(scales: torch.Tensor, minimums: torch.Tensor | None) -> torch.Tensor:
    if minimums is None:
        raise ValueError("these scales come with minimums")
    return scales | (minimums << 4)


def _unfold_pairs(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight pairs of 6 bits in 12 bytes: the first four scales, the first four minimums, then the lower four
    bits of the other pairs, whose upper two bits top up the first eight bytes."""
    first, second, third = data.split(4, dim=-1)
    return (
        torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), dim=-1),
        torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), dim=-1),
    )


def _fold_pairs(scales: torch.Tensor, minimums: torch.Tensor | None) -> torch.Tensor:
    if minimums is None:
        raise ValueError("these scales come with minimums")
    (low, high), (low_min, high_min) = scales.split(4, dim=-1), minimums.split(4, dim=-1)
    return torch.cat(
        (low | ((high & 48) << 2), low_min | ((high_min & 48) << 2), (high & 15) | ((high_min & 15) << 4)),
        dim=-1,
    )


def _unfold_sixteen(data: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Sixteen signed scales of 6 bits in 12 bytes: four low bits in planes of 8, two high in planes of 4."""
    low, high = Planes(4, 8).unfold(data[..., :8]), Planes(2, 4).unfold(data[..., 8:])
    return (low | (high << 4)).to(torch.int8) - 32, None


def _fold_sixteen(scales: torch.Tensor, minimums: torch.Tensor | None) -> torch.Tensor:
    shifted = (scales + 32).to(torch.uint8)
    return torch.cat((Planes(4, 8).fold(shifted & 15), Planes(2, 4).fold(shifted >> 4)), dim=-1)


def _unfold_eight(data: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Eight signed scales of 6 bits in 6 bytes: upper two bits first, then lower four, both consecutive."""
    high, low = Planes(2, 1).unfold(data[..., :2]), Planes(4, 1).unfold(data[..., 2:])
    return (low | (high << 4)).to(torch.int8) - 32, None


def _fold_eight(scales: torch.Tensor, minimums: torch.Tensor | None) -> torch.Tensor:
    shifted = (scales + 32).to(torch.uint8)
    return torch.cat((Planes(2, 1).fold(shifted >> 4), Planes(4, 1).fold(shifted & 15)), dim=-1)


def _unfold_int8(data: torch.Tensor) -> tuple[torch.Tensor, None]:
    return data.view(torch.int8), None


def _fold_int8(scales: torch.Tensor, minimums: torch.Tensor | None) -> torch.Tensor:
    return scales.contiguous().view(torch.uint8)


_PAIRS = Scales(8, 12, 0, 63, _unfold_pairs, _fold_pairs)
LAYOUTS = {
    "Q4_0": Layout(BLOCK, ("scale", "low"), Planes(4, 16)),
    "Q4_1": Layout(BLOCK, ("scale", "minimum", "low"), Planes(4, 16)),
    "Q5_0": Layout(BLOCK, ("scale", "high", "low"), Planes(4, 16), Planes(1, 1)),
    "Q5_1": Layout(BLOCK, ("scale", "minimum", "high", "low"), Planes(4, 16), Planes(1, 1)),
    "Q8_0": Layout(BLOCK, ("scale", "low"), Planes(8, BLOCK), signed=True),
    "IQ4_NL": Layout(BLOCK, ("scale", "low"), Planes(4, 16)),
    "Q2_K": Layout(
        SUPER_BLOCK,
        ("scales", "low", "scale", "minimum"),
        Planes(2, 32),
        scales=Scales(16, 16, 0, 15, _unfold_nibbles, _fold_nibbles),
    ),
    "Q3_K": Layout(
        SUPER_BLOCK,
        ("high", "low", "scales", "scale"),
        Planes(2, 32),
        Planes(1, 32),
        Scales(16, 12, -32, 31, _unfold_sixteen, _fold_sixteen),
    ),
    "Q4_K": Layout(SUPER_BLOCK, ("scale", "minimum", "scales", "low"), Planes(4, 32), scales=_PAIRS),
    "Q5_K": Layout(
        SUPER_BLOCK, ("scale", "minimum", "scales", "high", "low"), Planes(4, 32), Planes(1, 32), _PAIRS
    ),
    "Q6_K": Layout(
        SUPER_BLOCK,
        ("low", "high", "scales", "scale"),
        Planes(4, 64),
        Planes(2, 32),
        Scales(16, 16, -128, 127, _unfold_int8, _fold_int8),
    ),
    "IQ4_XS": Layout(
        SUPER_BLOCK,
        ("scale", "scales", "low"),
        Planes(4, 16),
        scales=Scales(8, 6, -32, 31, _unfold_eight, _fold_eight),
    ),
}

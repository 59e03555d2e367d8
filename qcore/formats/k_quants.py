"""K-quants: even grids whose scales and minimums are quantized in turn, within super-blocks of 256 inputs.
These are the types Q2_K … Q6_K of GGUF.

    w ≈ d · a · code − m · b                          q2_k, q4_k, q5_k: code in 0 … 2^bits − 1
    w ≈ d · a · (code − 2^(bits−1))                   q3_k, q6_k

`d` and `m` are float16, one per super-block. The integers `a` and `b` belong to a group of 16 or 32 inputs:

             group    a               b          stored bits per weight
    q2_k      16      0 … 15          0 … 15     2.625
    q3_k      16      −32 … 31                   3.4375
    q4_k      32      0 … 63          0 … 63     4.5
    q5_k      32      0 … 63          0 … 63     5.5
    q6_k      16      −128 … 127                 6.5625

Small groups fit the weights more closely, and 4 to 8 bits per scale in place of 16 pay for them. `a` and `b`
are stored as unsigned codes of 4, 6 or 8 bits in the packing of `packing.py`; the code of a signed `a` is a +
32 or a + 128. Every part has as many bytes as in a GGUF file.

A row must consist of whole super-blocks. For another number of inputs, `for_columns` returns the format that
llama.cpp stores instead: Q4_0 for q2_k and q3_k, Q5_0 for q4_k, Q5_1 for q5_k and Q8_0 for q6_k.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qcore.formats.affine import Affine
from qcore.formats.kinds import Base, Family, Format, packed_width, register
from qcore.formats.signed import GGML_GROUP, GGUF_FAMILY, Signed, check_ggml_group
from qcore.formats.super_blocks import SuperBlocks
from qcore.formats.uniform import Uniform

if TYPE_CHECKING:
    import torch

_SIGNED = (3, 6)  # bits of the kinds without a minimum
_GROUPS = {2: 16, 3: 16, 4: 32, 5: 32, 6: 16}
_SCALE_BITS = {2: 4, 3: 6, 4: 6, 5: 6, 6: 8}
_FALLBACKS: dict[int, Format] = {
    2: Signed(4),
    3: Signed(4),
    4: Signed(5),
    5: Affine(5, GGML_GROUP),
    6: Uniform(8, GGML_GROUP, True),
}


@register("k_quant")
@dataclass(frozen=True)
class KQuant(SuperBlocks):
    """The K-quant of `bits` bits (2 … 6), see the module docstring."""

    BASES: ClassVar[dict[str, Base]] = {
        f"gguf-q{bits}_k": Base(
            f"{bits}-bit integers, quantized scales in super-blocks of 256 inputs: the type Q{bits}_K of "
            "llama.cpp",
            size,
        )
        for bits, size in _GROUPS.items()
    }
    EXAMPLES: ClassVar[tuple[str, ...]] = tuple(BASES)
    FAMILY: ClassVar[Family] = GGUF_FAMILY

    bits: int
    even: ClassVar[bool] = True
    native: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bits not in _GROUPS:
            raise ValueError(f"bits is {self.bits}, but a K-quant has 2 to 6")

    @classmethod
    def from_name(cls, base: str, group_size: int | None, options: Collection[str]) -> KQuant:
        """Return the format. Raise `ValueError` for another group size than that of the type."""
        bits = int(base[6])
        check_ggml_group(base, group_size, _GROUPS[bits])
        return cls(bits)

    @property
    def label(self) -> str:
        """The name of its recipe, such as "gguf-q4_k"."""
        return f"gguf-q{self.bits}_k"

    @property
    def group_size(self) -> int:
        """The inputs that share a scale: 16 or 32."""
        return _GROUPS[self.bits]

    @property
    def affine(self) -> bool:
        """Whether groups have a minimum: q2_k, q4_k and q5_k."""
        return not self.signed

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is the middle code: q3_k and q6_k."""
        return self.signed

    @property
    def signed(self) -> bool:
        """Whether scales may be negative: q3_k and q6_k."""
        return self.bits in _SIGNED

    @property
    def highest_minimum(self) -> float:
        """0: a minimum is −m · b, with the m of a super-block above 0 unless all its minimums are."""
        return 0.0

    @property
    def scale_bits(self) -> int:
        """The bits of the code of a scale, and of a minimum."""
        return _SCALE_BITS[self.bits]

    @property
    def scale_offset(self) -> int:
        """The code of the scale 0: 0, or 32 (q3_k) or 128 (q6_k) for signed scales."""
        return 1 << (self.scale_bits - 1) if self.signed else 0

    @property
    def fallback(self) -> Format:
        """The format that llama.cpp stores in place of rows that are not whole super-blocks."""
        return _FALLBACKS[self.bits]

    # -- minimums -----------------------------------------------------------------------------------------

    def encode_minimum(
        self, minimum: torch.Tensor, importance: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return "minimum" m (N, S) and "min_codes" of float32 minimums (N, G), as `encode_scale` does."""
        from qcore.formats.scales import quantize_by_block

        top = (1 << self.scale_bits) - 1
        integers, unit = quantize_by_block(-minimum, self.groups_per_block, 0, top, importance)
        return {"minimum": unit, "min_codes": self.pack_minimums(integers)}

    def decode_minimum(
        self, parts: Mapping[str, torch.Tensor], rows: slice | torch.Tensor = slice(None)
    ) -> torch.Tensor:
        """Return the minimums −m · b (N, G), float32; with `rows`, of these rows only."""
        return -self._times(parts["minimum"][rows], self.minimum_integers(parts, rows))

    def minimum_layout(self, rows: int, groups: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return {part: (dtype, shape)} of "minimum" and "min_codes"."""
        return {
            "minimum": ("float16", (rows, groups // self.groups_per_block)),
            "min_codes": ("uint8", (rows, packed_width(groups, self.scale_bits))),
        }

    def minimum_integers(
        self, parts: Mapping[str, torch.Tensor], rows: slice | torch.Tensor = slice(None)
    ) -> torch.Tensor:
        """Return b (N, G), int16, from the stored `parts`."""
        import torch

        return self._unpack(parts["min_codes"][rows]).to(torch.int16)

    def pack_minimums(self, integers: torch.Tensor) -> torch.Tensor:
        """Return "min_codes" of the integers b (N, G): the inverse of `minimum_integers`."""
        import torch

        from qcore.formats.packing import pack

        return pack(integers.to(torch.uint8), self.scale_bits)

"""Signed formats: an even grid about a fixed zero point, with scales of either sign. These are the types Q4_0
and Q5_0 of GGUF.

    w ≈ scale · (code − 2^(bits−1))          code in 0 … 2^bits − 1; scale float16, positive or negative

The grid has one more value on one side of 0 than on the other: −8 … 7 times the scale with 4 bits. The sign
of the scale chooses that side per group, so all 2^bits codes are in use at no cost. A symmetric format of
`uniform.py` has positive scales and leaves code 0 unused.

Stored bits per weight: bits + 16 / 32, such as 4.5 for gguf-q4_0.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from qcore.formats.kinds import Base, Family, Format, check_group_size, register

GGML_GROUP = 32  # weights per block of ggml's types without super-blocks
GGUF_FAMILY = Family(
    "types of llama.cpp",
    "#b0742a",
    "The block types of GGUF files: what llama.cpp, Ollama and LM Studio run.",
)


def check_ggml_group(base: str, group_size: int | None, own: int) -> None:
    """Raise `ValueError` unless a recipe name with the base of a GGUF type leaves the type's group size."""
    if group_size != own:
        raise ValueError(f"groups of {base} always have {own} inputs, so -g{group_size} does not apply")


@register("signed")
@dataclass(frozen=True)
class Signed(Format):
    """A grid of `bits` bits (2 … 8) with the zero point 2^(bits−1) and signed scales, see the module
    docstring."""

    BASES: ClassVar[dict[str, Base]] = {
        f"gguf-q{bits}_0": Base(
            f"{bits}-bit integers, one signed scale per 32 inputs: the type Q{bits}_0 of llama.cpp",
            GGML_GROUP,
        )
        for bits in (4, 5)
    }
    EXAMPLES: ClassVar[tuple[str, ...]] = tuple(BASES)
    FAMILY: ClassVar[Family] = GGUF_FAMILY

    bits: int
    group_size: int | None = GGML_GROUP
    even: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    native: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, but a signed format has 2 to 8")
        check_group_size(self.group_size)

    @classmethod
    def from_name(cls, base: str, group_size: int | None, options: Collection[str]) -> Signed:
        """Return the format. Raise `ValueError` for another group size than that of the GGUF type."""
        check_ggml_group(base, group_size, GGML_GROUP)
        return cls(int(base[6]))

    @property
    def label(self) -> str:
        """A short name, such as "gguf-q4_0"; "signed4-g64" for a grid that is not a GGUF type."""
        if f"gguf-q{self.bits}_0" in self.BASES and self.group_size == GGML_GROUP:
            return f"gguf-q{self.bits}_0"
        return f"signed{self.bits}" + ("" if self.group_size is None else f"-g{self.group_size}")

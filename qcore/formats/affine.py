"""Affine formats: an even grid with a float minimum per group of inputs.

    w ≈ scale · code + minimum          code in 0 … 2^bits − 1; scale and minimum float16

The minimum costs 16 bits per group, where an integer zero point (`uniform.py`) costs the width of a code. The
grid need not contain 0: it starts anywhere, so it fits groups that lie on one side of 0. MLX stores weights
like this, and so do the types Q4_1 and Q5_1 of GGUF, in groups of 32.

Stored bits per weight: bits + 32 / group_size, such as 5 for gguf-q4_1 and 4.5 for affine4-g64.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from qcore.formats.kinds import Base, Family, Format, check_group_size, register
from qcore.formats.signed import GGML_GROUP, check_ggml_group

_GGUF = {"gguf-q4_1": 4, "gguf-q5_1": 5}  # the bits of each type
_WORDS = "-bit codes, one scale and one float minimum per group of inputs"


@register("affine")
@dataclass(frozen=True)
class Affine(Format):
    """A grid of `bits` bits (2 … 8) with a scale and a minimum per `group_size` inputs, see the module
    docstring."""

    BASES: ClassVar[dict[str, Base]] = {
        **{f"affine{bits}": Base(f"{bits}{_WORDS}, as in MLX") for bits in (2, 3, 4, 5, 6, 8)},
        **{
            base: Base(f"{bits}{_WORDS}: the type {base[5:].upper()} of llama.cpp", GGML_GROUP)
            for base, bits in _GGUF.items()
        },
    }
    EXAMPLES: ClassVar[tuple[str, ...]] = ("affine4-g64", "gguf-q4_1", "gguf-q5_1")
    FAMILY: ClassVar[Family] = Family(
        "integers with a minimum",
        "#2f9e8f",
        "An evenly spaced grid with a scale and a minimum per group, both 16-bit floats.",
    )

    bits: int
    group_size: int
    even: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False
    affine: ClassVar[bool] = True
    native: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, but an affine format has 2 to 8")
        if self.group_size is None:
            raise ValueError("an affine format needs a group_size, such as 64")
        check_group_size(self.group_size)

    @classmethod
    def from_name(cls, base: str, group_size: int | None, options: Collection[str]) -> Affine:
        """Return the format. Raise `ValueError` for another group size than that of the GGUF type."""
        if base in _GGUF:
            check_ggml_group(base, group_size, GGML_GROUP)
            return cls(_GGUF[base], GGML_GROUP)
        return cls(int(base.removeprefix("affine")), group_size)  # type: ignore[arg-type]  # checked above

    @property
    def label(self) -> str:
        """A short name, such as "gguf-q4_1" and "affine4-g64"."""
        if self.group_size == GGML_GROUP and self.bits in _GGUF.values():
            return f"gguf-q{self.bits}_1"
        return f"affine{self.bits}-g{self.group_size}"

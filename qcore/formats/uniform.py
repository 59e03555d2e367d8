"""Uniform formats: codes on an evenly spaced grid, with one scale (and one zero point) per group of inputs.

    w ≈ scale · (code − zero_point)          code in 0 … 2^bits − 1

A weight is a matrix (N outputs, K inputs). Groups run along the inputs, over which a dot product sums, so a
kernel applies each scale once per group. `group_size=None` means one group per row ("per channel").

Symmetric formats have the fixed zero point 2^(bits−1) and use the codes 1 … 2^bits − 1, so the grid is
symmetric about 0. Asymmetric formats store a `bits`-wide integer zero point per group, so their grid contains
0 exactly.

Stored bits per weight: bits + (16 + zero-point bits) / group_size, e.g. 4 + (16 + 4) / 64 = 4.3125 for
int4-g64.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from qcore.formats.kinds import Base, Family, Format, check_double_quant, check_group_size, register
from qcore.formats.signed import GGML_GROUP, check_ggml_group


@register("uniform")
@dataclass(frozen=True)
class Uniform(Format):
    """A `bits`-wide integer grid (2 … 8), see the module docstring. `double_quant` stores the scales in 8
    bits."""

    BASES: ClassVar[dict[str, Base]] = {
        "int8": Base("8-bit integers, one scale per channel", None),
        "int4": Base("4-bit integers, one scale and zero point per group of inputs"),
        "int3": Base("3-bit integers, one scale and zero point per group of inputs"),
        "int2": Base("2-bit integers, one scale and zero point per group of inputs"),
        "gguf-q8_0": Base("8-bit integers, one scale per 32 inputs: the type Q8_0 of llama.cpp", GGML_GROUP),
    }
    EXAMPLES: ClassVar[tuple[str, ...]] = ("gguf-q8_0",)
    FAMILY: ClassVar[Family] = Family(
        "integers",
        "#3d7fdb",
        "An evenly spaced grid with one scale per channel or per group (-g64: 64 weights share one).",
    )
    OPTIONS: ClassVar[tuple[str, ...]] = ("sym", "asym", "dq")

    bits: int
    group_size: int | None
    symmetric: bool
    double_quant: bool = False
    even: ClassVar[bool] = True
    native: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, but a uniform format has 2 to 8")
        check_group_size(self.group_size)
        check_double_quant(self)

    @classmethod
    def from_name(cls, base: str, group_size: int | None, options: Collection[str]) -> Uniform:
        """Return the format: int8 is symmetric unless `options` contain "asym"; the others are asymmetric
        unless they contain "sym". gguf-q8_0 is int8-g32-sym. Raise `ValueError` for options that a GGUF type
        does not have."""
        if base == "gguf-q8_0":
            check_ggml_group(base, group_size, GGML_GROUP)
            if options:
                raise ValueError(f"{base} takes no option for its grid, so -{min(options)} does not apply")
            return cls(8, GGML_GROUP, True)
        symmetric = "sym" in options or (base == "int8" and "asym" not in options)
        return cls(int(base[3:]), group_size, symmetric, double_quant="dq" in options)

    @property
    def label(self) -> str:
        """A short name, such as "int4-g64-sym"."""
        size = "" if self.group_size is None else f"-g{self.group_size}"
        return f"int{self.bits}{size}{'-sym' * self.symmetric}{'-dq' * self.double_quant}"

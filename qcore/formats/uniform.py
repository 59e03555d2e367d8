"""Uniform formats: codes on an evenly spaced grid, one scale (and one zero point) for each group of inputs.

    w ≈ scale · (code − zero_point)          code in 0 … 2^bits − 1

A weight is a matrix (N outputs, K inputs). Groups run along the inputs, because that is the direction a dot
product sums over, so a kernel applies each scale once per group. `group_size=None` is one group a row ("per
channel").

Symmetric formats have the fixed zero point 2^(bits−1) and use the codes 1 … 2^bits − 1, so that the grid is
its own mirror image. Asymmetric formats store a `bits`-wide integer zero point for each group: their grid
always contains 0 exactly.

Stored bits per weight: bits + (16 + zero-point bits) / group_size, e.g. 4 + (16 + 4) / 64 = 4.3125 for
int4-g64.
"""

from dataclasses import dataclass

SMALLEST_GROUP = 8  # eight codes of b bits fill exactly b bytes, so every group starts on a byte


def check_group_size(group_size: int | None) -> None:
    """Raise `ValueError` unless `group_size` is None (per channel) or a positive multiple of 8."""
    if group_size is not None and (group_size < SMALLEST_GROUP or group_size % SMALLEST_GROUP):
        raise ValueError(
            f"group_size is {group_size}, but it must be a positive multiple of {SMALLEST_GROUP}, such as 32, 64 or 128"
        )


@dataclass(frozen=True)
class Uniform:
    """A `bits`-wide integer grid (2 … 8), see the module's docstring. `double_quant` stores the scales in 8
    bits themselves."""

    bits: int
    group_size: int | None
    symmetric: bool
    double_quant: bool = False

    def __post_init__(self):
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, but a uniform format has 2 to 8")
        check_group_size(self.group_size)
        if self.double_quant and self.group_size is None:
            raise ValueError(
                "double_quant needs a group_size: per-channel scales are too few to be worth quantizing"
            )

    @property
    def levels(self) -> int:
        """Number of codes, 2^bits."""
        return 1 << self.bits

    @property
    def label(self) -> str:
        """A short name, such as "int4-g64-sym"."""
        size = "" if self.group_size is None else f"-g{self.group_size}"
        return f"int{self.bits}{size}{'-sym' * self.symmetric}{'-dq' * self.double_quant}"

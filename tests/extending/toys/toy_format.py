"""A format from outside the package, one file: codes are signed powers of two, and so are scales, one byte
each (E8M0, as in the OCP Microscaling formats)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from qcore.formats.kinds import Base, Family, Table, check_group_size, register


@register("powers")
@dataclass(frozen=True)
class Powers(Table):
    """w ≈ 2^e · ±2^−k, k in 0 … 7. Stored bits per weight: 4 + 8 / group size."""

    BASES: ClassVar[dict[str, Base]] = {"pow4": Base("a sign and a power of two in 4 bits, scales too", 32)}
    EXAMPLES: ClassVar[tuple[str, ...]] = ("pow4-g32",)
    FAMILY: ClassVar[Family] = Family("powers of two", "#7a5c99", "Multiplying by them is shifting.")

    group_size: int | None
    bits: ClassVar[int] = 4

    def __post_init__(self):
        check_group_size(self.group_size)

    @classmethod
    def from_name(cls, base: str, group_size: int | None, options: Collection[str]) -> Powers:
        return cls(group_size)

    @property
    def label(self) -> str:
        return f"pow4-g{self.group_size}"

    @property
    def fixed(self):
        import torch

        powers = torch.exp2(-torch.arange(8.0))
        return torch.cat((powers, -powers))

    def encode_scale(self, scale):
        import torch

        exponent = scale.float().clamp_min(2.0**-126).log2().round()
        return {"scale_codes": (exponent + 127).clamp(0, 254).to(torch.uint8)}

    def decode_scale(self, parts, rows=slice(None)):
        import torch

        return torch.exp2(parts["scale_codes"][rows].float() - 127)

    def scale_layout(self, rows: int, groups: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"scale_codes": ("uint8", (rows, groups))}

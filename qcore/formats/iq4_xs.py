"""IQ4_XS of GGUF: the table of IQ4_NL, with scales quantized within super-blocks of 256 inputs.

    w ≈ d · a · table[code]          d float16 per super-block, a in −32 … 31 per 32 inputs

That is 4.25 bits per weight, a quarter bit fewer than IQ4_NL.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qcore.formats.codebook import IQ4NL, Codebook
from qcore.formats.kinds import Base, Family, Format, Table, register
from qcore.formats.signed import GGML_GROUP, GGUF_FAMILY, check_ggml_group
from qcore.formats.super_blocks import SuperBlocks

if TYPE_CHECKING:
    import torch


@register("iq4_xs")
@dataclass(frozen=True)
class Iq4Xs(SuperBlocks, Table):
    """See the module docstring."""

    BASES: ClassVar[dict[str, Base]] = {
        "gguf-iq4_xs": Base(
            "a table of 16 integers, quantized scales in super-blocks of 256 inputs: the type IQ4_XS of "
            "llama.cpp",
            GGML_GROUP,
        )
    }
    EXAMPLES: ClassVar[tuple[str, ...]] = tuple(BASES)
    FAMILY: ClassVar[Family] = GGUF_FAMILY
    bits: ClassVar[int] = 4
    signed: ClassVar[bool] = True
    group_size: ClassVar[int] = GGML_GROUP
    scale_bits: ClassVar[int] = 6
    scale_offset: ClassVar[int] = 32

    @classmethod
    def from_name(cls, base: str, group_size: int | None, options: Collection[str]) -> Iq4Xs:
        """Return the format. Raise `ValueError` for another group size than that of the type."""
        check_ggml_group(base, group_size, GGML_GROUP)
        return cls()

    @property
    def label(self) -> str:
        """The name of its recipe."""
        return "gguf-iq4_xs"

    @property
    def fallback(self) -> Format:
        """The format that llama.cpp stores in place of rows that are not whole super-blocks."""
        return Codebook("iq4nl", GGML_GROUP)

    @property
    def fixed(self) -> torch.Tensor:
        """The table (16,), float32."""
        import torch  # imported here: recipe names must be parsed without torch

        return torch.tensor(IQ4NL, dtype=torch.float32)

    @property
    def reach(self) -> float:
        """The largest magnitude in the table."""
        return float(max(map(abs, IQ4NL)))

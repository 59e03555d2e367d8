"""Scales quantized within super-blocks of 256 inputs: what the K-quants and IQ4_XS of GGUF have in common.

    scale of a group = d · a          d float16 per super-block, a an integer of `scale_bits` bits per group

`a` is stored as an unsigned code in the packing of `packing.py`: a + `scale_offset`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.formats.kinds import Format, packed_width

if TYPE_CHECKING:
    import torch

SUPER_BLOCK = 256


class SuperBlocks(Format):
    """The base of formats whose rows consist of whole super-blocks; others take the format `fallback`, as in
    llama.cpp."""

    if TYPE_CHECKING:  # fields, class attributes or properties of each kind

        @property
        def group_size(self) -> int: ...
        @property
        def scale_bits(self) -> int: ...
        @property
        def scale_offset(self) -> int: ...
        @property
        def fallback(self) -> Format: ...

    @property
    def groups_per_block(self) -> int:
        """The groups of a super-block: 8 or 16."""
        return SUPER_BLOCK // self.group_size

    def for_columns(self, columns: int) -> Format:
        """Return this format if rows are whole super-blocks, otherwise the format that llama.cpp stores."""
        return self if columns % SUPER_BLOCK == 0 else self.fallback

    def groups(self, columns: int) -> int:
        """Return G, the number of groups in a row of `columns` inputs. Raise `InputError` unless rows consist
        of whole super-blocks."""
        if columns % SUPER_BLOCK:
            raise InputError(
                f"{self.label} stores super-blocks of {SUPER_BLOCK} inputs, but this weight has {columns} "
                f"inputs. Choose {self.fallback.label}, which llama.cpp stores instead."
            )
        return columns // self.group_size

    def encode_scale(
        self, scale: torch.Tensor, importance: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return "scale" d (N, S) and "scale_codes" of float32 scales (N, G). The codes have the least
        squared error, weighted by the `importance` (N, G) of the scales. Raise `InputError` for NaN and for
        scales too large for float16."""
        from qcore.formats.scales import quantize_by_block

        offset = self.scale_offset
        top = (1 << self.scale_bits) - 1 - offset
        integers, unit = quantize_by_block(scale, self.groups_per_block, -offset, top, importance)
        return {"scale": unit, "scale_codes": self.pack_scales(integers)}

    def decode_scale(
        self, parts: Mapping[str, torch.Tensor], rows: slice | torch.Tensor = slice(None)
    ) -> torch.Tensor:
        """Return the scales d · a (N, G), float32; with `rows`, of these rows only."""
        return self._times(parts["scale"][rows], self.scale_integers(parts, rows))

    def scale_layout(self, rows: int, groups: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return {part: (dtype, shape)} of "scale" and "scale_codes"."""
        return {
            "scale": ("float16", (rows, groups // self.groups_per_block)),
            "scale_codes": ("uint8", (rows, packed_width(groups, self.scale_bits))),
        }

    def scale_integers(
        self, parts: Mapping[str, torch.Tensor], rows: slice | torch.Tensor = slice(None)
    ) -> torch.Tensor:
        """Return a (N, G), int16, from the stored `parts`."""
        import torch

        return self._unpack(parts["scale_codes"][rows]).to(torch.int16) - self.scale_offset

    def pack_scales(self, integers: torch.Tensor) -> torch.Tensor:
        """Return "scale_codes" of the integers a (N, G): the inverse of `scale_integers`."""
        import torch

        from qcore.formats.packing import pack

        return pack((integers + self.scale_offset).to(torch.uint8), self.scale_bits)

    def _unpack(self, codes: torch.Tensor) -> torch.Tensor:
        from qcore.formats.packing import unpack

        return unpack(codes, self.scale_bits, codes.shape[-1] * 8 // self.scale_bits)

    def _times(self, unit: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
        return unit.float().repeat_interleave(self.groups_per_block, dim=-1) * integers

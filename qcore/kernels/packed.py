"""PackedWeight: a quantized weight in the layout of the native kernels, and the conversion from and to
`QuantizedTensor`.

`native/common/layout.h` describes the layout: panels of 8 rows, in which scales, zero points and codes are
stored in the order in which the kernels read them. `unpack` restores every stored part bit for bit, so a
module keeps only this form. The size is the same up to padding, with two exceptions: codes of 5 to 7 bits
take one byte each, and double-quantized scales are expanded to float16 (their 8-bit codes are kept for
`unpack`).
"""

import ctypes
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from qcore.base.errors import InputError
from qcore.formats.codebook import ENTRIES
from qcore.formats.kinds import Format
from qcore.formats.packing import pack as pack_codes
from qcore.formats.packing import packed_width
from qcore.formats.packing import unpack as unpack_codes
from qcore.formats.tensor import QuantizedTensor
from qcore.kernels import arena, library

BLOCK = 32  # columns
PANEL = 8  # rows
_BITS8, _BITS4, _BITS3, _BITS2, _TABLE, _ROW_TABLE = range(6)  # as in layout.h
_KINDS = {4: _BITS4, 3: _BITS3, 2: _BITS2}
_NUMBERS = tuple(field[0] for field in library.Layout._fields_[:-2])  # of a layout: all but its buffers


def reason_against(format: Format, shape: tuple[int, int]) -> str | None:
    """Return None if the layout supports `format` and `shape` (N, K), else the reason against it."""
    if not format.native:
        return f"no native kernel reads the format {format.label}"
    if format.group_size is not None and format.group_size % BLOCK:
        return f"groups of {format.group_size} are not a multiple of {BLOCK}"
    if 0 in shape:
        return "the weight is empty"
    return None


class _Stored(ctypes.Structure):
    """`struct Stored` of pack.cpp: the parts of a `QuantizedTensor`, with one byte per zero point."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("bits", "row_bytes", "groups")),
        *((name, library.Buffer) for name in ("codes", "scale", "zero", "tables")),
    ]

    @classmethod
    def of(
        cls,
        bits: int,
        codes: torch.Tensor,
        groups: int,
        scale: torch.Tensor | None,
        zero: torch.Tensor | None,
        tables: torch.Tensor | None,
    ) -> "_Stored":
        """Describe codes (N, bytes per row), scales (N, G), zero points (N · G,) and tables (N, 16)."""
        return cls(
            bits,
            codes.shape[-1],
            groups,
            library.buffer(codes, torch.uint8),
            library.buffer(scale, torch.float16),
            library.buffer(zero, torch.uint8),
            library.buffer(tables, torch.float16),
        )


@dataclass(frozen=True)
class PackedWeight:
    """A weight of `shape` (N, K) as `panels` uint8 (ceil(N / 8) · bytes per panel).

    `table` float32 (16,) holds the values of a codebook shared by all rows. `codebook`, `scale_codes` and
    `scale_range` are kept for `unpack` only.
    """

    format: Format
    shape: tuple[int, int]
    panels: torch.Tensor
    table: torch.Tensor | None = None
    codebook: torch.Tensor | None = None
    scale_codes: torch.Tensor | None = None
    scale_range: torch.Tensor | None = None
    numbers: tuple[int, ...] = ()  # the layout's numbers as integers, for the torch operators

    @classmethod
    def pack(cls, weight: QuantizedTensor) -> "PackedWeight":
        """Convert `weight`, whose parts must be on the CPU.

        Raise `InputError` if `reason_against` returns a reason, or if a part is too small for the shape, and
        `MemoryError` if memory is exhausted.
        """
        failure = f"The weight {tuple(weight.shape)} in {weight.format.label} cannot be packed"
        if reason := reason_against(weight.format, weight.shape):
            raise InputError(f"{failure}: {reason}.")
        (rows, columns), bits = weight.shape, weight.format.bits
        table = tables = codebook = None
        if weight.codebook is not None and weight.codebook.ndim == 2:
            tables = weight.codebook.contiguous()
        elif weight.codebook is not None:
            table, codebook = weight.codebook.float().contiguous(), weight.codebook
        empty = torch.empty(0, dtype=torch.uint8)
        packed = cls(
            weight.format, (rows, columns), empty, table, codebook, weight.scale_codes, weight.scale_range
        )
        if packed.layout.panel_bytes < 0:
            raise InputError(f"{failure}: the sizes contradict one another.")
        packed = replace(packed, panels=arena.empty(-(-rows // PANEL) * packed.layout.panel_bytes))
        groups, scales = weight.format.groups(columns), weight.scales()
        scale = None if scales is None else scales.half().contiguous()
        zero = None
        if weight.zero_point is not None:
            zero = unpack_codes(weight.zero_point, bits, rows * groups).contiguous()
        codes = weight.codes.contiguous()
        stored = _Stored.of(bits, codes, groups, scale, zero, tables)
        status = library.functions().qcore_pack(
            ctypes.byref(packed.layout), ctypes.byref(stored), torch.get_num_threads()
        )
        library.check(status, failure)
        numbers = tuple(int(getattr(packed.layout, name)) for name in _NUMBERS)
        return replace(packed, numbers=numbers)

    def unpack(self) -> QuantizedTensor:
        """Return the packed tensor, bit for bit. Raise `MemoryError` if memory is exhausted."""
        (rows, columns), bits = self.shape, self.format.bits
        groups = self.format.groups(columns)
        codes = torch.zeros(rows, packed_width(columns, bits), dtype=torch.uint8)
        scale = None if self._per_row else torch.empty(rows, groups, dtype=torch.float16)
        zero = torch.empty(rows * groups, dtype=torch.uint8) if self._asymmetric else None
        tables = torch.empty(rows, ENTRIES, dtype=torch.float16) if self._per_row else None
        stored = _Stored.of(bits, codes, groups, scale, zero, tables)
        status = library.functions().qcore_unpack(
            ctypes.byref(self.layout), ctypes.byref(stored), torch.get_num_threads()
        )
        library.check(status, f"The weight {self.shape} in {self.format.label} cannot be unpacked")
        return QuantizedTensor(
            self.format,
            self.shape,
            codes,
            scale=None if self.format.double_quant else scale,
            zero_point=None if zero is None else pack_codes(zero, bits),
            codebook=tables if self._per_row else self.codebook,
            scale_codes=self.scale_codes,
            scale_range=self.scale_range,
        )

    @cached_property
    def unpacked_once(self) -> QuantizedTensor:
        """The result of the first `unpack`: layers that share a packed weight share its parts afterwards."""
        return self.unpack()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that this form keeps."""
        return sum(
            part.nbytes
            for part in (self.panels, self.table, self.scale_codes, self.scale_range)
            if part is not None
        )

    @property
    def _per_row(self) -> bool:
        return not self.format.scaled

    @property
    def _asymmetric(self) -> bool:
        return self.format.has_zero_points

    @cached_property
    def kind(self) -> int:
        """The block layout, as `Kind` of layout.h numbers it."""
        if not self.format.even:
            return _ROW_TABLE if self._per_row else _TABLE
        return _KINDS.get(self.format.bits, _BITS8)

    @cached_property
    def layout(self) -> library.Layout:
        """The description that the kernels read. It points into this object's tensors."""
        blocks = -(-self.shape[1] // BLOCK)
        blocks += blocks % 2 if self.kind == _ROW_TABLE else 0
        group_blocks = blocks if self.format.group_size is None else self.format.group_size // BLOCK
        zero_bytes = 0 if not self._asymmetric else PANEL if self.kind == _BITS8 else PANEL // 2
        zero = float(1 << (self.format.bits - 1)) if self.format.even else 0.0
        layout = library.Layout(
            self.kind,
            zero_bytes,
            group_blocks,
            zero,
            *self.shape,
            blocks,
            0,
            library.buffer(self.panels, torch.uint8),
            library.buffer(self.table, torch.float32),
        )
        layout.panel_bytes = library.functions().qcore_panel_bytes(ctypes.byref(layout))
        return layout

    def __getstate__(self) -> dict:
        """Leave out cached properties: their addresses are not valid in a copy."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("layout", "kind", "unpacked_once")
        }

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

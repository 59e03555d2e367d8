"""PackedWeight: a quantized weight in the layout in which the native kernels read it, and the way there and back.

The layout is described in `native/common/layout.h`: panels of 8 rows in which scales, zero points and codes follow one another as they are
needed. It holds the same bits as a `QuantizedTensor`, so a module can keep this form alone: `unpack` gives back every stored part,
bit for bit. Bytes are the same up to padding, except that 5- to 7-bit codes take a byte each and double-quantized scales are
expanded to float16 (their 8-bit form is kept too, for `unpack`).
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


def reason_against(format: Format, shape: tuple[int, int]) -> str | None:
    """None if the layout can hold a weight of this format and shape (N, K), else why not."""
    if not format.native:
        return f"no native kernel reads the format {format.label}"
    if format.group_size is not None and format.group_size % BLOCK:
        return f"groups of {format.group_size} are not a multiple of {BLOCK}"
    if 0 in shape:
        return "the weight is empty"
    return None


class _Stored(ctypes.Structure):
    """`struct Stored` of pack.cpp: the parts of a `QuantizedTensor`, zero points as one byte each."""

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
        """Describe codes (N, bytes of a row), scales (N, G), zero points (N · G,) and tables (N, 16)."""
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
    """`panels` uint8 (P · panel bytes), `table` float32 (16,) where one serves the matrix, and what only `unpack` needs."""

    format: Format
    shape: tuple[int, int]
    panels: torch.Tensor
    table: torch.Tensor | None = None
    codebook: torch.Tensor | None = None
    scale_codes: torch.Tensor | None = None
    scale_range: torch.Tensor | None = None
    numbers: tuple[int, ...] = ()  # the layout's numbers, as plain integers for the torch operators

    @classmethod
    def pack(cls, weight: QuantizedTensor) -> "PackedWeight":
        """Lay out `weight`, whose parts must be on the CPU.

        Raise `ValueError` if `reason_against` has one, `InputError` if the parts are smaller than the shape needs,
        `MemoryError` without memory.
        """
        if reason := reason_against(weight.format, weight.shape):
            raise ValueError(f"this weight cannot be packed: {reason}")
        failure = f"The weight {tuple(weight.shape)} in {weight.format.label} cannot be packed"
        (rows, columns), bits = weight.shape, weight.format.bits
        learned = weight.codebook is not None and weight.codebook.ndim == 2
        table = None if weight.codebook is None or learned else weight.codebook.float().contiguous()
        codebook = None if learned else weight.codebook
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
        tables = weight.codebook.contiguous() if learned else None
        stored = _Stored.of(bits, codes, groups, scale, zero, tables)
        status = library.functions().qcore_pack(
            ctypes.byref(packed.layout), ctypes.byref(stored), torch.get_num_threads()
        )
        library.check(status, failure)
        numbers = tuple(int(getattr(packed.layout, name)) for name, _ in library.Layout._fields_[:-2])
        return replace(packed, numbers=numbers)

    def unpack(self) -> QuantizedTensor:
        """Return the tensor that was packed: the same parts, bit for bit. Raise `MemoryError` without memory."""
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
        """`unpack`, remembered: layers that give up the same packed form get the same parts."""
        return self.unpack()

    @property
    def nbytes(self) -> int:
        """Bytes of everything this form keeps."""
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
        return not self.format.symmetric

    @cached_property
    def kind(self) -> int:
        """Which block layout is used, as numbered in layout.h."""
        if not self.format.even:
            return _ROW_TABLE if self._per_row else _TABLE
        return _KINDS.get(self.format.bits, _BITS8)

    @cached_property
    def layout(self) -> library.Layout:
        """The description that the kernels take; valid as long as this object lives."""
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
        """Without what is cached: addresses mean nothing in a copy."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("layout", "kind", "unpacked_once")
        }

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

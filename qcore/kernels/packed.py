"""PackedWeight: a quantized weight in the layout of the native kernels, and the conversion from and to
`QuantizedTensor`.

`native/common/layout.h` describes the layout: panels of 8 rows, in which scales, zero points and codes are
stored in the order in which the kernels read them. `unpack` restores every stored part bit for bit, so a
module keeps only this form. The size is the same up to padding, with three exceptions: one byte each is taken
by codes of 7 bits, by zero points of 5 to 7 bits, and by the 6-bit scales and minimums of K-quants; and
double-quantized scales are expanded to float16 (their 8-bit codes are kept for `unpack`).
"""

import ctypes
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from qcore.base.errors import InputError
from qcore.formats.codebook import ENTRIES
from qcore.formats.k_quants import KQuant
from qcore.formats.kinds import Format
from qcore.formats.packing import pack as pack_codes
from qcore.formats.packing import packed_width
from qcore.formats.packing import unpack as unpack_codes
from qcore.formats.super_blocks import SUPER_BLOCK
from qcore.formats.tensor import QuantizedTensor
from qcore.kernels import arena, library

BLOCK = 32  # columns
PANEL = 8  # rows
_BITS8, *_, _TABLE, _ROW_TABLE = range(8)  # `Kind` of layout.h
_KINDS = {6: 1, 5: 2, 4: 3, 3: 4, 2: 5}  # by the bits of a code; 7 bits take 8
_SUPER_KINDS = {6: 8, 5: 9, 4: 10, 3: 11, 2: 12}  # of K-quants
_MINIMUMS = 2 * PANEL  # bytes of float16 minimums per group and panel
_NUMBERS = tuple(field[0] for field in library.Layout._fields_[:-2])  # of a layout: all but its buffers


def reason_against(format: Format, shape: tuple[int, int]) -> str | None:
    """Return None if the layout supports `format` and `shape` (N, K), else the reason against it."""
    if not format.native:
        return f"no native kernel reads the format {format.label}"
    if isinstance(format, KQuant):
        if shape[1] % SUPER_BLOCK:
            return f"rows of {shape[1]} inputs are not whole super-blocks of {SUPER_BLOCK}"
    elif format.group_size is not None and format.group_size % BLOCK:
        return f"groups of {format.group_size} are not a multiple of {BLOCK}"
    if 0 in shape:
        return "the weight is empty"
    return None


class _Stored(ctypes.Structure):
    """`struct Stored` of pack.cpp: the parts of a `QuantizedTensor`, with one byte per zero point and per
    integer of a K-quant."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("bits", "row_bytes", "groups")),
        *((name, library.Buffer) for name in ("codes", "scale", "zero", "tables")),
        *((name, library.Buffer) for name in ("minimum", "scale_integers", "minimum_integers")),
    ]

    @classmethod
    def of(cls, bits: int, groups: int, parts: dict[str, torch.Tensor]) -> "_Stored":
        """Describe `parts`: codes uint8 (N, bytes per row), scale and minimum float16 (N, G), zero uint8
        (N · G,) and tables float16 (N, 16). For K-quants, G = `groups` counts super-blocks, and the integers
        are uint8 (N, groups per row)."""
        halves = ("scale", "tables", "minimum")
        return cls(
            bits=bits,
            row_bytes=parts["codes"].shape[-1],
            groups=groups,
            **{
                name: library.buffer(part, torch.float16 if name in halves else torch.uint8)
                for name, part in parts.items()
            },
        )


def _groups(format: Format, columns: int) -> int:
    """Return the scales per row of `columns` inputs: one per group, or per super-block."""
    return columns // SUPER_BLOCK if isinstance(format, KQuant) else format.groups(columns)


def _parts(weight: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Return the parts of `weight` as `_Stored` describes them."""
    format, (rows, columns) = weight.format, weight.shape
    scale = weight.scale if isinstance(format, KQuant) else weight.scales()
    parts = {
        "codes": weight.codes,
        "scale": scale if scale is None else scale.half(),
        "minimum": weight.minimum,
    }
    if weight.codebook is not None and weight.codebook.ndim == 2:
        parts["tables"] = weight.codebook
    if weight.zero_point is not None:
        parts["zero"] = unpack_codes(weight.zero_point, format.bits, rows * format.groups(columns))
    if isinstance(format, KQuant):
        integers = format.scale_integers(weight.parts())
        parts["scale_integers"] = (integers & 255).to(torch.uint8)  # two's complement
        if format.affine:
            parts["minimum_integers"] = format.minimum_integers(weight.parts()).to(torch.uint8)
    return {name: part.contiguous() for name, part in parts.items() if part is not None}


def _empty_parts(format: Format, rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Return memory for the parts of a weight of shape (`rows`, `columns`), as `_parts` returns them."""
    groups = _groups(format, columns)
    parts = {"codes": torch.zeros(rows, packed_width(columns, format.bits), dtype=torch.uint8)}
    if format.scaled:
        parts["scale"] = torch.empty(rows, groups, dtype=torch.float16)
    else:
        parts["tables"] = torch.empty(rows, ENTRIES, dtype=torch.float16)
    if format.has_zero_points:
        parts["zero"] = torch.empty(rows * groups, dtype=torch.uint8)
    if format.affine:
        parts["minimum"] = torch.empty(rows, groups, dtype=torch.float16)
    if isinstance(format, KQuant):
        for name in ("scale_integers", "minimum_integers")[: 1 + format.affine]:
            parts[name] = torch.empty(rows, format.groups(columns), dtype=torch.uint8)
    return parts


@dataclass(frozen=True)
class PackedWeight:
    """A weight of `shape` (N, K) as `panels` uint8 (ceil(N / 8) · bytes per panel).

    `table` float32 (16,) holds the values of a codebook shared by all rows. `codebook`, and `scale_codes` and
    `scale_range` of double-quantized scales, are kept for `unpack` only.
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
        (rows, columns), format = weight.shape, weight.format
        table = codebook = None
        if weight.codebook is not None and weight.codebook.ndim == 1:
            table, codebook = weight.codebook.float().contiguous(), weight.codebook
        codes_to_keep = (weight.scale_codes, weight.scale_range) if format.double_quant else (None, None)
        empty = torch.empty(0, dtype=torch.uint8)
        packed = cls(format, (rows, columns), empty, table, codebook, *codes_to_keep)
        if packed.layout.panel_bytes < 0:
            raise InputError(f"{failure}: the sizes contradict one another.")
        packed = replace(packed, panels=arena.empty(-(-rows // PANEL) * packed.layout.panel_bytes))
        if missing := sorted(set(format.layout(rows, columns)) - set(weight.parts())):
            raise InputError(f"{failure}: it has no {missing[0]}.")
        try:
            parts = _parts(weight)
        except RuntimeError as error:  # of torch, for parts of other sizes
            raise InputError(f"{failure}: its parts do not fit its shape.") from error
        stored = _Stored.of(format.bits, _groups(format, columns), parts)
        status = library.functions().qcore_pack(
            ctypes.byref(packed.layout), ctypes.byref(stored), torch.get_num_threads()
        )
        library.check(status, failure)
        numbers = tuple(int(getattr(packed.layout, name)) for name in _NUMBERS)
        return replace(packed, numbers=numbers)

    def unpack(self) -> QuantizedTensor:
        """Return the packed tensor, bit for bit. Raise `MemoryError` if memory is exhausted."""
        format, parts = self.format, _empty_parts(self.format, *self.shape)
        stored = _Stored.of(format.bits, _groups(format, self.shape[1]), parts)
        status = library.functions().qcore_unpack(
            ctypes.byref(self.layout), ctypes.byref(stored), torch.get_num_threads()
        )
        library.check(status, f"The weight {self.shape} in {self.format.label} cannot be unpacked")
        scale_codes, min_codes = self.scale_codes, None
        if isinstance(format, KQuant):
            integers = parts["scale_integers"]
            scale_codes = format.pack_scales(
                integers.view(torch.int8).to(torch.int16) if format.signed else integers
            )
            min_codes = format.pack_minimums(parts["minimum_integers"]) if format.affine else None
        return QuantizedTensor(
            format,
            self.shape,
            parts["codes"],
            scale=None if format.double_quant else parts.get("scale"),
            zero_point=pack_codes(parts["zero"], format.bits) if "zero" in parts else None,
            codebook=parts.get("tables", self.codebook),
            scale_codes=scale_codes,
            scale_range=self.scale_range,
            minimum=parts.get("minimum"),
            min_codes=min_codes,
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

    @cached_property
    def kind(self) -> int:
        """The block layout, as `Kind` of layout.h numbers it."""
        if not self.format.even:
            return _ROW_TABLE if self._per_row else _TABLE
        kinds = _SUPER_KINDS if isinstance(self.format, KQuant) else _KINDS
        return kinds.get(self.format.bits, _BITS8)

    @cached_property
    def layout(self) -> library.Layout:
        """The description that the kernels read. It points into this object's tensors."""
        format = self.format
        blocks = -(-self.shape[1] // BLOCK)
        blocks += blocks % 2 if self.kind == _ROW_TABLE else 0
        zero_bytes = 0
        if isinstance(format, KQuant):
            group_blocks = SUPER_BLOCK // BLOCK
        else:
            group_blocks = blocks if format.group_size is None else format.group_size // BLOCK
            if format.affine:
                zero_bytes = _MINIMUMS
            elif format.has_zero_points:
                zero_bytes = PANEL if format.bits > 4 else PANEL // 2
        zero = float(1 << (format.bits - 1)) if format.even and not format.affine else 0.0
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

"""Round-to-nearest quantization of a matrix in native code (`native/x86/quantize.h`).

All threads together read the weight once and write packed codes. Besides the result, the kernel allocates one
row of floats per thread. Weights with strided rows (a transposed matrix), or of a dtype that the kernel does
not read, are copied a few rows at a time.
"""

import ctypes
from functools import cache

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.packing import packed_width
from qcore.formats.tensor import QuantizedTensor, round_scale
from qcore.kernels import library

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Dtype` of quantize.h
_CHUNK = 1 << 22  # weights copied at a time


class _Job(ctypes.Structure):
    """`struct QuantizeJob` of quantize.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("dtype", "bits", "symmetric")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "stride", "group", "row_bytes")),
        *(
            (name, library.Buffer)
            for name in ("weight", "midpoints", "order", "kept", "scale", "half", "zero", "codes")
        ),
    ]


def reason_against(weight: torch.Tensor, format: Format) -> str | None:
    """Return None if the native kernel can round `weight` to `format`, else the reason against it."""
    if not format.native:
        return f"no native kernel writes the format {format.label}"
    if format.signed or format.affine:
        return f"the native kernel finds neither the signed scales nor the minimums of {format.label}"
    if format.reach != 1:
        return f"the table of {format.label} does not end at 1"
    if weight.device.type != "cpu":
        return f"the weight is on {weight.device}"
    if not weight.numel():
        return "the weight is empty"
    return library.reason_without("qcore_quantize")


def quantize(weight: torch.Tensor, format: Format) -> QuantizedTensor | None:
    """Round `weight` (N, K) to a uniform `format` or to one with a fixed codebook.

    Return None if the weight holds NaN, or if the scale of a group overflows float16. Raise `InputError` as
    `reason_against` says, and `MemoryError` if memory is exhausted.
    """
    if weight.ndim != 2 or (reason := reason_against(weight, format)):
        reason = reason if weight.ndim == 2 else "it is not a matrix"
        raise InputError(f"The weight {tuple(weight.shape)} cannot be rounded natively: {reason}.")
    (rows, columns), bits = weight.shape, format.bits
    groups, uniform = format.groups(columns), format.even
    wide = format.double_quant or not uniform  # these scales are rounded later, so keep them in float32
    scale = torch.empty(rows, groups, dtype=torch.float32 if wide else torch.float16)
    zero = torch.empty(rows, groups, dtype=torch.uint8) if format.has_zero_points else None
    codes = torch.empty(rows, packed_width(columns, bits), dtype=torch.uint8)
    parts = {"scale" if wide else "half": scale, "zero": zero, "codes": codes}
    if wide and format.rounds_for_stored_scale:
        # blocks of scales are rounded together, so find all scales first
        if not _run(weight, format, {**parts, "codes": None}):
            return None
        parts = {"kept": round_scale(scale, format), "zero": zero, "codes": codes}
    if not _run(weight, format, parts):
        return None
    return QuantizedTensor.from_packed(
        format, (rows, columns), codes, scale, zero, None if uniform else format.fixed
    )


def _run(weight: torch.Tensor, format: Format, parts: dict[str, torch.Tensor | None]) -> bool:
    """Fill `parts`, which have a row for each row of `weight`. Return False if a scale overflows float16."""
    direct = weight.dtype in _DTYPES and (weight.stride(1) == 1 or weight.shape[1] == 1)
    step = weight.shape[0] if direct else max(1, _CHUNK // weight.shape[1])
    good = True
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        piece = (
            weight[rows]
            if direct
            else weight[rows].to(weight.dtype if weight.dtype in _DTYPES else torch.float32).contiguous()
        )
        good &= _call(piece, format, {name: part[rows] for name, part in parts.items() if part is not None})
    return good


def _call(weight: torch.Tensor, format: Format, parts: dict[str, torch.Tensor]) -> bool:
    rows, columns = weight.shape
    midpoints, order = (None, None) if format.even else _thresholds(format)
    job = _Job(
        dtype=_DTYPES[weight.dtype],
        bits=format.bits,
        symmetric=format.symmetric,
        rows=rows,
        columns=columns,
        stride=weight.stride(0),
        group=format.group_size or columns,
        row_bytes=packed_width(columns, format.bits),
        weight=(weight.data_ptr(), ((rows - 1) * weight.stride(0) + columns) * weight.element_size()),
        midpoints=library.buffer(midpoints, torch.float32),
        order=library.buffer(order, torch.uint8),
        **{name: library.buffer(part, part.dtype) for name, part in parts.items()},
    )
    status = library.functions().qcore_quantize(ctypes.byref(job), torch.get_num_threads())
    if status != library.NOT_FINITE:
        library.check(status, f"The weight ({rows}, {columns}) cannot be rounded to {format.label}")
    return status != library.NOT_FINITE


@cache
def _thresholds(format: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the midpoints (15,) between the sorted entries of a fixed codebook, and the codes (16,) of the
    intervals that they separate."""
    assert format.fixed is not None  # a format that rounding supports has a fixed codebook, or is uniform
    ordered, order = format.fixed.sort(stable=True)
    return (ordered[1:] + ordered[:-1]) / 2, order.to(torch.uint8)

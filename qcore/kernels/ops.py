"""Products and embedding lookups by the native kernels, as functions and as the torch operators
`qcore::linear` and `qcore::rows`.

The functions call the library through ctypes, which costs less than torch's dispatcher. `torch.compile`, meta
tensors and fake tensors need the operators. Both run the same code.
"""

import ctypes

import torch
from torch.library import custom_op

from qcore.base.errors import InputError
from qcore.kernels import library
from qcore.kernels.packed import PackedWeight


def linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, mode: int) -> torch.Tensor:
    """Multiply x (..., K) of any floating dtype by `weight` (N, K) and return (..., N) in x's dtype.

    Raise `InputError` if x or `bias` (N,) does not match the weight, and `MemoryError` if memory for the
    quantized activations is exhausted.
    """
    return _linear(x, weight.layout, weight.shape[0], bias, mode)


def _linear(
    x: torch.Tensor, layout: library.Layout, rows: int, bias: torch.Tensor | None, mode: int
) -> torch.Tensor:
    inputs = x if x.dtype == torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()
    result = inputs.new_empty(*x.shape[:-1], rows)
    if not inputs.is_cpu or (bias is not None and not bias.is_cpu):
        raise InputError(f"A native kernel multiplies on the CPU, but the input is on {x.device}.")
    if bias is not None and (bias.dtype != torch.float32 or not bias.is_contiguous()):
        bias = bias.to(torch.float32).contiguous()
    status = library.functions().qcore_linear(
        ctypes.byref(layout),
        inputs.data_ptr(),
        inputs.numel(),
        None if bias is None else bias.data_ptr(),
        0 if bias is None else bias.numel(),
        result.data_ptr(),
        result.numel(),
        mode,
        torch.get_num_threads(),
    )
    if status:
        library.check(status, f"The input {tuple(x.shape)} cannot be multiplied by this weight")
    return result if x.dtype == torch.float32 else result.to(x.dtype)


def rows(ids: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """Look up the rows `ids` (...) of `weight` (N, K), and return them dequantized as float32 (..., K).

    Raise `IndexError` for ids outside 0 … N − 1.
    """
    return _rows(ids, weight.layout)


def _rows(ids: torch.Tensor, layout: library.Layout) -> torch.Tensor:
    flat = ids.to(torch.int64).flatten().contiguous()
    address, nbytes = library.buffer(flat, torch.int64)
    out = flat.new_empty(*ids.shape, layout.columns, dtype=torch.float32)
    status = library.functions().qcore_rows(
        ctypes.byref(layout), address, nbytes // 8, out.data_ptr(), out.numel()
    )
    library.check(status, f"Rows of a weight with {layout.rows} rows cannot be looked up")
    return out


# -- operators, which take only tensors and numbers: the layout's numbers are arguments of their own


def _layout(numbers: list[int], panels: torch.Tensor, table: torch.Tensor | None) -> library.Layout:
    kind, zero_bytes, group_blocks, zero, *sizes = numbers
    parts = library.buffer(panels, torch.uint8), library.buffer(table, torch.float32)
    return library.Layout(kind, zero_bytes, group_blocks, zero, *sizes, *parts)


@custom_op("qcore::linear", mutates_args=(), device_types="cpu")
def linear_op(
    x: torch.Tensor,
    panels: torch.Tensor,
    table: torch.Tensor | None,
    bias: torch.Tensor | None,
    numbers: list[int],
    mode: int,
) -> torch.Tensor:
    """`linear` with a `PackedWeight` taken apart into `panels`, `table` and `numbers`."""
    return _linear(x, _layout(numbers, panels, table), numbers[4], bias, mode)


@linear_op.register_fake
def _(x, panels, table, bias, numbers, mode):
    return x.new_empty(*x.shape[:-1], numbers[4])


@custom_op("qcore::rows", mutates_args=(), device_types="cpu")
def rows_op(
    ids: torch.Tensor, panels: torch.Tensor, table: torch.Tensor | None, numbers: list[int]
) -> torch.Tensor:
    """`rows` with a `PackedWeight` taken apart."""
    return _rows(ids, _layout(numbers, panels, table))


@rows_op.register_fake
def _(ids, panels, table, numbers):
    return panels.new_empty(*ids.shape, numbers[5], dtype=torch.float32)

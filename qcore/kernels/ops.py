"""Products and embedding rows by the native kernels, as plain calls and as the torch operators `qcore::linear` and `qcore::rows`.

A plain call goes straight through ctypes, which costs less than torch's dispatcher. `torch.compile`, meta and fake tensors need the
operators. Both end in the same function.
"""

import ctypes

import torch
from torch.library import custom_op

from qcore.kernels import library
from qcore.kernels.packed import PackedWeight


def linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, mode: int) -> torch.Tensor:
    """Multiply x (..., K) of any floating dtype by `weight` (N, K) and return (..., N) in x's dtype."""
    return _linear(x, weight.layout, weight.shape[0], bias, mode)


def _linear(
    x: torch.Tensor, layout: library.Layout, rows: int, bias: torch.Tensor | None, mode: int
) -> torch.Tensor:
    columns = x.shape[-1]
    inputs = x if x.dtype == torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()
    tokens = inputs.numel() // columns
    result = torch.empty(*x.shape[:-1], rows)
    if tokens:
        if bias is not None and (bias.dtype != torch.float32 or not bias.is_contiguous()):
            bias = bias.to(torch.float32).contiguous()
        failed = library.functions().qcore_linear(
            ctypes.byref(layout), inputs.data_ptr(), tokens, columns, library.address(bias), result.data_ptr(), rows, mode,
            torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for the quantized activations of {tokens} tokens")
    return result if x.dtype == torch.float32 else result.to(x.dtype)


def rows(ids: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """Return the dequantized rows `ids` (...) of `weight` (N, K) as float32 (..., K). Raise `IndexError` for ids outside 0 … N − 1."""
    return _rows(ids, weight.layout)


def _rows(ids: torch.Tensor, layout: library.Layout) -> torch.Tensor:
    flat = ids.to(torch.int64).flatten().contiguous()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < layout.rows:
        raise IndexError(
            f"row {int(flat.min())} or {int(flat.max())} lies outside a weight of {layout.rows} rows"
        )
    out = torch.empty(*ids.shape, layout.columns)
    library.functions().qcore_rows(ctypes.byref(layout), flat.data_ptr(), flat.numel(), out.data_ptr())
    return out


# -- the operators take the layout's numbers as arguments, because an operator accepts only tensors and numbers ----------------------


def _layout(numbers: list[int], panels: torch.Tensor, table: torch.Tensor | None) -> library.Layout:
    kind, zero_bytes, group_blocks, zero, *sizes = numbers
    return library.Layout(
        kind, zero_bytes, group_blocks, zero, *sizes, library.address(panels), library.address(table)
    )


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

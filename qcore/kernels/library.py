"""The compiled kernels from Python: loading, and the torch operator `qcore::linear` that `torch.compile` and
meta tensors see.

A plain call goes straight through ctypes, which costs less than a trip through torch's dispatcher; both end
in the same function.
"""

import ctypes
import os
from functools import cache

import torch
from torch.library import custom_op

from qcore.base.errors import UnavailableError
from qcore.kernels.build import build
from qcore.kernels.packed import Layout, PackedWeight

FLOAT, INT16, INT8, INT8_TOKEN = range(4)  # how activations are multiplied: `Mode` of layout.h

NAMES = {  # of instruction sets, as the library and as people call them
    "avx512vnni": "AVX-512 VNNI",
    "avxvnni": "AVX-VNNI",
    "avx2": "AVX2",
    "dotprod": "NEON with dot products",
    "neon": "NEON",
}
_X86_ONLY = {
    "qcore_decode": "The whole-step decoder",
    "qcore_quantize": "Native rounding",
    "qcore_choose_codes": "Native choosing of codes",
}


@cache
def functions() -> ctypes.CDLL:
    """The library, compiled if need be, with the fastest instruction set of this processor, or the one that
    QCORE_INSTRUCTIONS names.

    Raises `UnavailableError` if it cannot be compiled or loaded, or if this processor has no instruction set
    that it is written for.
    """
    try:
        loaded = ctypes.CDLL(str(build()))
    except OSError as error:
        raise UnavailableError(f"The native kernels were compiled but cannot be loaded: {error}.") from error
    declare(loaded)
    if not loaded.qcore_instructions():
        raise UnavailableError(
            "The native kernels need an x86-64 processor with AVX2, FMA and F16C, or 64-bit ARM, and this is neither."
        )
    wanted = os.environ.get("QCORE_INSTRUCTIONS", "").strip().lower()
    if wanted and not loaded.qcore_choose(wanted.encode()):
        raise UnavailableError(
            f"QCORE_INSTRUCTIONS is {wanted!r}, which this processor or its compiler lacks. Unset it, or choose from {', '.join(NAMES)}."
        )
    return loaded


def declare(loaded: ctypes.CDLL) -> None:
    """Tell ctypes what the functions of a library that was just loaded take and return."""
    pointer, long, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    loaded.qcore_instructions.argtypes, loaded.qcore_instructions.restype = [], ctypes.c_char_p
    loaded.qcore_choose.argtypes = [ctypes.c_char_p]
    loaded.qcore_panel_bytes.argtypes, loaded.qcore_panel_bytes.restype = [pointer], long
    loaded.qcore_pack.argtypes = [
        pointer,
        whole,
        long,
        long,
        pointer,
        pointer,
        pointer,
        pointer,
        pointer,
        whole,
    ]
    loaded.qcore_unpack.argtypes = [pointer, whole, long, long, pointer, pointer, pointer, pointer, whole]
    loaded.qcore_rows.argtypes = [pointer, pointer, long, pointer]
    loaded.qcore_sum_words.argtypes, loaded.qcore_sum_words.restype = [pointer, long, whole], ctypes.c_uint64
    if hasattr(loaded, "qcore_decode"):
        loaded.qcore_decode.argtypes, loaded.qcore_decode.restype = [pointer, pointer, pointer], None
    if hasattr(loaded, "qcore_choose_codes"):
        loaded.qcore_choose_codes.argtypes, loaded.qcore_choose_codes.restype = [pointer, whole], None
    loaded.qcore_linear.argtypes = [pointer, pointer, long, long, pointer, pointer, long, whole, whole]


@cache
def reason_missing() -> str | None:
    """None if the library can be used, else the sentence that says why not."""
    try:
        functions()
    except UnavailableError as error:
        return str(error)
    return None


def reason_without(function: str) -> str | None:
    """None if the library can be used and has `function` (one that not every processor has), else the
    sentence that says why not."""
    if reason := reason_missing():
        return reason
    if hasattr(functions(), function):
        return None
    return f"{_X86_ONLY[function]} is written for x86-64 processors with AVX2, and this one runs {instructions()}."


def instructions() -> str:
    """The instruction set that runs, as people call it. Raises `UnavailableError` as `functions` does."""
    return NAMES[functions().qcore_instructions().decode()]


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """The address of a tensor's data, or null."""
    return ctypes.c_void_p(address(tensor))


def address(tensor: torch.Tensor | None) -> int | None:
    """The address of a tensor's data as a number, or None."""
    return None if tensor is None else tensor.data_ptr()


def linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, mode: int) -> torch.Tensor:
    """x (..., K) in any floating dtype times `weight` (N, K): (..., N) in x's dtype."""
    return _linear(x, weight.layout, weight.shape[0], bias, mode)


def _linear(x: torch.Tensor, layout: Layout, rows: int, bias: torch.Tensor | None, mode: int) -> torch.Tensor:
    columns = x.shape[-1]
    inputs = x if x.dtype == torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()
    tokens = inputs.numel() // columns
    result = torch.empty(*x.shape[:-1], rows)
    if tokens:
        if bias is not None and (bias.dtype != torch.float32 or not bias.is_contiguous()):
            bias = bias.to(torch.float32).contiguous()
        failed = functions().qcore_linear(
            ctypes.byref(layout),
            inputs.data_ptr(),
            tokens,
            columns,
            None if bias is None else bias.data_ptr(),
            result.data_ptr(),
            rows,
            mode,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for the quantized activations of {tokens} tokens")
    return result if x.dtype == torch.float32 else result.to(x.dtype)


def rows(ids: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """The dequantized rows `ids` (...) of `weight` (N, K) as float32 (..., K). Raises `IndexError` if one
    lies outside 0 … N − 1."""
    return _rows(ids, weight.layout)


def _rows(ids: torch.Tensor, layout: Layout) -> torch.Tensor:
    flat = ids.to(torch.int64).flatten().contiguous()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < layout.rows:
        raise IndexError(
            f"row {int(flat.min())} or {int(flat.max())} lies outside a weight of {layout.rows} rows"
        )
    out = torch.empty(*ids.shape, layout.columns)
    functions().qcore_rows(ctypes.byref(layout), flat.data_ptr(), flat.numel(), out.data_ptr())
    return out


def sum_words(words: torch.Tensor) -> int:
    """The sum of an int64 tensor modulo 2⁶⁴, by all threads, as fast as memory can be read."""
    return functions().qcore_sum_words(words.data_ptr(), words.numel(), torch.get_num_threads())


# -- the operators: the same with the layout's numbers as arguments, because an operator takes only tensors an


def _layout(numbers: list[int], panels: torch.Tensor, table: torch.Tensor | None) -> Layout:
    kind, zero_bytes, group_blocks, zero, *sizes = numbers
    return Layout(kind, zero_bytes, group_blocks, zero, *sizes, address(panels), address(table))


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

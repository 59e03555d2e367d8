"""The compiled kernels as a C library: loading it, the signatures of its functions, and the structures it shares with Python."""

import ctypes
import os
from functools import cache

import torch

from qcore.base.errors import UnavailableError
from qcore.kernels.build import build

FLOAT, INT16, INT8, INT8_TOKEN = range(4)  # how activations are multiplied: `Mode` of layout.h

NAMES = {  # instruction sets: the library's name and the display name
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


class Layout(ctypes.Structure):
    """`struct Weight` of layout.h."""

    _fields_ = [
        ("kind", ctypes.c_int32), ("zero_bytes", ctypes.c_int32), ("group_blocks", ctypes.c_int32), ("zero", ctypes.c_float),
        ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("blocks", ctypes.c_int64), ("panel_bytes", ctypes.c_int64),
        ("panels", ctypes.c_void_p), ("table", ctypes.c_void_p),
    ]  # fmt: skip


@cache
def functions() -> ctypes.CDLL:
    """Load the library, compiling it first if necessary.

    It runs the fastest instruction set of this processor, or the one that QCORE_INSTRUCTIONS names. Raise `UnavailableError` if the
    library cannot be compiled or loaded, or supports no instruction set of this processor.
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
    """Set the argument and return types of every function of a library that was just loaded."""
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
    """Return None if the library can be used, else a sentence that says why not."""
    try:
        functions()
    except UnavailableError as error:
        return str(error)
    return None


def reason_without(function: str) -> str | None:
    """Return None if the library can be used and exports `function`, else a sentence that says why not."""
    if reason := reason_missing():
        return reason
    if hasattr(functions(), function):
        return None
    return f"{_X86_ONLY[function]} is written for x86-64 processors with AVX2, and this one runs {instructions()}."


def instructions() -> str:
    """Return the display name of the instruction set in use. Raise `UnavailableError` as `functions` does."""
    return NAMES[functions().qcore_instructions().decode()]


def address(tensor: torch.Tensor | None) -> int | None:
    """Return the address of a tensor's data, or None for None."""
    return None if tensor is None else tensor.data_ptr()


def sum_words(words: torch.Tensor) -> int:
    """Return the sum of an int64 tensor modulo 2⁶⁴, read by all threads as fast as memory delivers it."""
    return functions().qcore_sum_words(words.data_ptr(), words.numel(), torch.get_num_threads())

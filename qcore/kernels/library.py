"""The compiled kernels as a C library: loading, function signatures, and the structures shared with
Python."""

import ctypes
import logging
import os
from functools import cache

import torch

from qcore.base.errors import InputError, UnavailableError
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
    "qcore_mixture": "A native mixture of experts",
    "qcore_quantize": "Native rounding",
    "qcore_choose_codes": "Native choosing of codes",
}
_log = logging.getLogger(__name__)


class Buffer(ctypes.Structure):
    """`struct Buffer` of buffer.h: an address and the bytes that lie there."""

    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_int64)]


class Layout(ctypes.Structure):
    """`struct Weight` of layout.h."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("zero_bytes", ctypes.c_int32),
        ("group_blocks", ctypes.c_int32),
        ("zero", ctypes.c_float),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("blocks", ctypes.c_int64),
        ("panel_bytes", ctypes.c_int64),
        ("panels", Buffer),
        ("table", Buffer),
    ]


# `Status` of buffer.h: what the functions return
OK, NO_MEMORY, NOT_FINITE, BAD_INDEX = range(4)
_PROBLEMS = {
    4: "the sizes contradict one another",
    5: "there are too few codes for the shape",
    6: "there are too few scales for the shape",
    7: "there are too few zero points for the shape",
    8: "the table of values is too short",
    9: "the packed panels are too short for the shape",
    10: "the input does not match the shape",
    11: "the bias does not match the number of outputs",
    12: "the output does not match the shape",
    13: "there are too few weights for the shape",
    14: "the key-value cache is too small",
    15: "the model has too few positions",
    16: "there are too few minimums for the shape",
}


@cache
def functions() -> ctypes.CDLL:
    """Load the library, compiling it first if necessary.

    It runs the fastest instruction set of this processor, or the one that the environment variable
    QCORE_INSTRUCTIONS names.

    Raise `UnavailableError` if the library cannot be compiled or loaded, or if it supports no instruction set
    of this processor.
    """
    try:
        loaded = ctypes.CDLL(str(build()))
    except OSError as error:
        raise UnavailableError(f"The native kernels were compiled but cannot be loaded: {error}.") from error
    declare(loaded)
    if not loaded.qcore_instructions():
        raise UnavailableError(
            "The native kernels need an x86-64 processor with AVX2, FMA and F16C, or a 64-bit ARM processor."
        )
    wanted = os.environ.get("QCORE_INSTRUCTIONS", "").strip().lower()
    if wanted and not loaded.qcore_choose(wanted.encode()):
        raise UnavailableError(
            f"QCORE_INSTRUCTIONS is {wanted!r}, which this processor or its compiler does not support. "
            f"Unset it, or choose from {', '.join(NAMES)}."
        )
    _log.debug("native kernels of %s run %s", loaded._name, loaded.qcore_instructions().decode())
    return loaded


def declare(loaded: ctypes.CDLL) -> None:
    """Set the argument and return types of every function of a library that was just loaded."""
    pointer, long, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    types = {
        "qcore_instructions": ([], ctypes.c_char_p),
        "qcore_choose": ([ctypes.c_char_p], whole),
        "qcore_panel_bytes": ([pointer], long),
        "qcore_pack": ([pointer, pointer, whole], whole),
        "qcore_unpack": ([pointer, pointer, whole], whole),
        "qcore_linear": ([pointer, pointer, long, pointer, long, pointer, long, whole, whole], whole),
        "qcore_rows": ([pointer, pointer, long, pointer, long], whole),
        "qcore_sum_words": ([pointer, long, whole], ctypes.c_uint64),
        "qcore_quantize": ([pointer, whole], whole),
        "qcore_choose_codes": ([pointer, whole], whole),
        "qcore_decode": ([pointer, pointer, pointer], whole),
        "qcore_mixture": ([pointer, pointer, long, pointer, pointer, pointer, long, long, whole], whole),
    }
    for name, (arguments, result) in types.items():
        if name not in _X86_ONLY or hasattr(loaded, name):
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, result


def check(status: int, failure: str) -> None:
    """Raise the error that a function's return value `status` stands for; `failure` says what failed.

    Raise `MemoryError` if memory is exhausted, `IndexError` for an index out of range, and `InputError` for
    buffers that contradict the sizes passed with them.
    """
    if status == OK:
        return
    if status == NO_MEMORY:
        raise MemoryError(f"{failure}: there is not enough memory.")
    if status == BAD_INDEX:
        raise IndexError(f"{failure}: an index lies outside the valid range.")
    raise InputError(f"{failure}: {_PROBLEMS[status]}.")


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
    return (
        f"{_X86_ONLY[function]} needs an x86-64 processor with AVX2, "
        f"but this processor runs {instructions()}."
    )


def instructions() -> str:
    """Return the display name of the instruction set in use. Raise `UnavailableError` as `functions` does."""
    return NAMES[functions().qcore_instructions().decode()]


def buffer(tensor: torch.Tensor | None, dtype: torch.dtype) -> tuple[int | None, int]:
    """Return (address, bytes) of a tensor's data for a field of type `Buffer`; (None, 0) for None.

    Raise `InputError` unless the tensor is contiguous, on the CPU, and of type `dtype`.
    """
    if tensor is None:
        return None, 0
    if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        strides = "" if tensor.is_contiguous() else "non-contiguous "
        raise InputError(
            f"A native kernel needs a contiguous {dtype} tensor on the CPU, "
            f"not a {strides}{tensor.dtype} tensor on {tensor.device}."
        )
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()  # dynamo cannot trace `nbytes`


def sum_words(words: torch.Tensor) -> int:
    """Return the sum of an int64 tensor modulo 2⁶⁴, read by all threads as fast as memory delivers it."""
    address, nbytes = buffer(words, torch.int64)
    return functions().qcore_sum_words(address, nbytes // 8, torch.get_num_threads())

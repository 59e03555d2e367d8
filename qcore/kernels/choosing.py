"""Choosing the codes of a block of inputs one after another natively: `native/x86/choose_avx2.cpp` from Python."""

import ctypes
from dataclasses import dataclass

import torch

from qcore.kernels import library

MOST_INPUTS, MOST_ENTRIES = 64, 16  # of a block and of a table; `kBlock` and `kEntries` of choose_avx2.cpp


class _Job(ctypes.Structure):
    """`struct QcoreChooseJob` of choose_avx2.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("first", "last", "outputs", "inputs")),
        *((name, ctypes.c_void_p) for name in ("matrix", "state", "values", "step", "group", "inverse", "scale", "zero")),
        *((name, ctypes.c_float) for name in ("middle", "lowest", "highest")),
        ("entries", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("table", "midpoints")),
        ("per_output", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("codes", "moves")),
    ]  # fmt: skip


@dataclass(frozen=True)
class Levels:
    """What weights may be: `inverse` and `scale` (G, N), and either the codes `lowest` … `highest` around `zero` (G, N) or `middle`, or
    a `table` (E,) or (N, E) of ascending values with the `midpoints` between them."""

    inverse: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    middle: int = 0
    lowest: int = 0
    highest: int = 0
    table: torch.Tensor | None = None
    midpoints: torch.Tensor | None = None


def available(levels: Levels) -> bool:
    """Whether the native function can choose among `levels` here."""
    small = levels.table is None or levels.table.shape[-1] <= MOST_ENTRIES
    return (
        small and levels.scale.device.type == "cpu" and library.reason_without("qcore_choose_codes") is None
    )


def choose(
    first: int,
    last: int,
    levels: Levels,
    groups: torch.Tensor,
    matrix: torch.Tensor,
    state: torch.Tensor,
    values: torch.Tensor | None,
    step: torch.Tensor,
    codes: torch.Tensor,
) -> torch.Tensor:
    """The moves (last − first, N) of the inputs `first` … `last` − 1, whose `codes` (K, N) are written, too. `methods.stepwise` says what
    is chosen; all are contiguous float32 on the CPU, `groups` (K,) int32."""
    moves = torch.empty(last - first, state.shape[1])
    whole = [
        tensor if tensor is None else tensor.contiguous()
        for tensor in (levels.inverse, levels.scale, levels.zero, levels.table, levels.midpoints)
    ]
    inverse, scale, zero, table, midpoints = (library.address(tensor) for tensor in whole)
    job = _Job(
        first, last, state.shape[1], state.shape[0],
        *(library.address(tensor) for tensor in (matrix, state, values, step, groups)), inverse, scale, zero,
        levels.middle, levels.lowest, levels.highest, 0 if table is None else levels.table.shape[-1], table, midpoints,
        levels.table is not None and levels.table.ndim == 2, library.address(codes), library.address(moves),
    )  # fmt: skip
    library.functions().qcore_choose_codes(ctypes.byref(job), ctypes.c_int(torch.get_num_threads()))
    return moves

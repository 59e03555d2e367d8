"""Choosing the codes of a block of inputs one after another natively: `native/x86/choose_avx2.cpp` from Python."""

import ctypes
from dataclasses import dataclass

import torch

from qcore.kernels import library

MOST_INPUTS, MOST_ENTRIES = 64, 16  # of a block and of a table; `kInputs` and `kEntries` of choose_avx2.cpp


class _Job(ctypes.Structure):
    """`struct ChooseJob` of choose_avx2.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("first", "last", "outputs", "inputs", "groups", "per_output")),
        ("entries", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("middle", "lowest", "highest")),
        *((name, library.Buffer) for name in ("matrix", "state", "values", "step", "group")),
        *((name, library.Buffer) for name in ("inverse", "scale", "zero", "table", "midpoints")),
        *((name, library.Buffer) for name in ("codes", "moves")),
    ]


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
    moves = torch.empty(max(0, last - first), state.shape[1])
    tabled = levels.table is not None

    def part(tensor: torch.Tensor | None) -> tuple[int | None, int]:
        return library.buffer(tensor, torch.float32)

    whole = {  # the address of a copy that nobody holds would be one of freed memory
        name: None if tensor is None else tensor.contiguous()
        for name in ("inverse", "scale", "zero", "table", "midpoints")
        for tensor in (getattr(levels, name),)
    }
    job = _Job(
        first=first,
        last=last,
        outputs=state.shape[1],
        inputs=state.shape[0],
        groups=levels.scale.shape[0],
        per_output=tabled and levels.table.ndim == 2,
        entries=levels.table.shape[-1] if tabled else 0,
        middle=levels.middle,
        lowest=levels.lowest,
        highest=levels.highest,
        matrix=part(matrix),
        state=part(state),
        values=part(values),
        step=part(step),
        group=library.buffer(groups, torch.int32),
        codes=part(codes),
        moves=part(moves),
        **{name: part(tensor) for name, tensor in whole.items()},
    )
    status = library.functions().qcore_choose_codes(ctypes.byref(job), torch.get_num_threads())
    library.check(status, f"The codes of the inputs {first} to {last} cannot be chosen")
    return moves

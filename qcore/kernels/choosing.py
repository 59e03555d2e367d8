"""The inner loop of GPTQ and of coordinate descent in native code (`native/x86/choose_avx2.cpp`): the codes
of a block of inputs, chosen one after another."""

import ctypes
from dataclasses import dataclass

import torch

from qcore.kernels import library

MOST_INPUTS = 64  # per block: `kInputs` of choose_avx2.cpp
MOST_ENTRIES = 16  # per table: `kEntries` of choose_avx2.cpp


class _Job(ctypes.Structure):
    """`struct ChooseJob` of choose_avx2.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("first", "last", "outputs", "inputs", "groups", "per_output")),
        ("entries", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("middle", "lowest", "highest")),
        *((name, library.Buffer) for name in ("matrix", "state", "values", "step", "group")),
        *((name, library.Buffer) for name in ("inverse", "scale", "zero", "minimum", "table", "midpoints")),
        *((name, library.Buffer) for name in ("codes", "errors")),
    ]


@dataclass(frozen=True)
class Levels:
    """The values that weights may take, with `scale` (G, N) and its `inverse` (G, N).

    Uniform grids have the codes `lowest` … `highest`, and the zero points `zero` (G, N) or the single zero
    point `middle`. Affine grids have the codes 0 … `highest` and the values `minimum` (G, N) of code 0.
    Codebooks have a `table` of ascending values, (E,) for all outputs or (N, E) for each output, and the
    `midpoints` between neighbouring values, (E − 1,) or (N, E − 1).
    """

    inverse: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    middle: int = 0
    lowest: int = 0
    highest: int = 0
    table: torch.Tensor | None = None
    midpoints: torch.Tensor | None = None
    minimum: torch.Tensor | None = None


def available(levels: Levels) -> bool:
    """Return whether the native function supports `levels` on this machine."""
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
    """Choose the codes of the inputs `first` … `last` − 1, write them to `codes` (K, N), and return the
    errors (last − first, N), which the caller propagates to the inputs after `last`.

    `quantization.methods.stepwise` defines the arguments. All tensors are contiguous float32 on the CPU,
    except `groups` (K,) int32, the group of each input. Raise `InputError` or `IndexError` if their sizes or
    values contradict one another.
    """
    errors = torch.empty(max(0, last - first), state.shape[1])
    table = levels.table

    def part(tensor: torch.Tensor | None) -> tuple[int | None, int]:
        return library.buffer(tensor, torch.float32)

    whole = {  # holds the copies that `contiguous` makes until the function returns
        name: None if tensor is None else tensor.contiguous()
        for name in ("inverse", "scale", "zero", "minimum", "table", "midpoints")
        for tensor in (getattr(levels, name),)
    }
    job = _Job(
        first=first,
        last=last,
        outputs=state.shape[1],
        inputs=state.shape[0],
        groups=levels.scale.shape[0],
        per_output=table is not None and table.ndim == 2,
        entries=0 if table is None else table.shape[-1],
        middle=levels.middle,
        lowest=levels.lowest,
        highest=levels.highest,
        matrix=part(matrix),
        state=part(state),
        values=part(values),
        step=part(step),
        group=library.buffer(groups, torch.int32),
        codes=part(codes),
        errors=part(errors),
        **{name: part(tensor) for name, tensor in whole.items()},
    )
    status = library.functions().qcore_choose_codes(ctypes.byref(job), torch.get_num_threads())
    library.check(status, f"The codes of the inputs {first} to {last} cannot be chosen")
    return errors

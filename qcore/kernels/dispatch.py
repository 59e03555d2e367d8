"""Which kernel multiplies, and why.

    activations   native kernel                                          where there is none
    "fp32"        float32                                                exact
    "int16"       int16 activations, one scale a block of 32 inputs      exact
    "int8-block"  int8, one scale a block of 32 inputs                   exact
    "int8"        int8, one scale a token                                int8, one scale a token

The native kernels need a C++ compiler and an x86-64 processor with AVX2 or better, or a 64-bit ARM one; without them the plain-torch
reference runs. `explain` says which, and names the instruction set.
"""

import logging
import warnings

import torch

from qcore.base.errors import InputError
from qcore.formats.tensor import QuantizedTensor
from qcore.kernels import library, ops, reference
from qcore.kernels.packed import PackedWeight, reason_against

MODES = {
    "fp32": library.FLOAT,
    "int16": library.INT16,
    "int8-block": library.INT8,
    "int8": library.INT8_TOKEN,
}
_log = logging.getLogger(__name__)
_NAMES = {
    library.FLOAT: "exact float32 activations",
    library.INT16: "int16 activations, one scale a block of 32 inputs",
    library.INT8: "int8 activations, one scale a block of 32 inputs",
    library.INT8_TOKEN: "int8 activations, one scale a token",
}


def linear(
    x: torch.Tensor,
    weight: QuantizedTensor | PackedWeight,
    bias: torch.Tensor | None = None,
    activations: str = "fp32",
) -> torch.Tensor:
    """x (..., K) times `weight` (N, K), plus `bias` (N,): (..., N) in x's dtype.

    A `PackedWeight` goes to the native kernel, a `QuantizedTensor` to the reference; `packed` turns one into the other where that
    pays. Gradients flow to x, through the reference. Raises `InputError` if x has another K or `activations` is unknown.
    """
    if x.shape[-1] != weight.shape[1]:
        raise InputError(f"The input has {x.shape[-1]} features, but this layer takes {weight.shape[1]}.")
    if activations not in MODES:
        raise InputError(f"Unknown activations {activations!r}. Known: {', '.join(MODES)}.")
    if isinstance(weight, QuantizedTensor):
        return reference.linear(x, weight, bias, "int8" if activations == "int8" else "fp32")
    if x.requires_grad and torch.is_grad_enabled():
        return reference.linear(x, weight.unpack(), bias, "int8" if activations == "int8" else "fp32")
    if _traced(x):
        return ops.linear_op(x, weight.panels, weight.table, bias, list(weight.numbers), MODES[activations])
    return ops.linear(x, weight, bias, MODES[activations])


def rows(weight: QuantizedTensor | PackedWeight, ids: torch.Tensor) -> torch.Tensor:
    """The dequantized rows `ids` (...) of `weight` (N, K) as float32 (..., K): an embedding. Raises `IndexError` for a row outside."""
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize(rows=ids.flatten()).view(*ids.shape, weight.shape[1])
    if _traced(ids):
        return ops.rows_op(ids, weight.panels, weight.table, list(weight.numbers))
    return ops.rows(ids, weight)


def _traced(x: torch.Tensor) -> bool:
    """Whether this call must go through torch's dispatcher: compilation, meta and fake tensors, subclasses."""
    return torch.compiler.is_compiling() or type(x) is not torch.Tensor or x.device.type != "cpu"


def reason_for_reference(weight: QuantizedTensor) -> str | None:
    """None if a native kernel can run `weight`, else why the reference will."""
    if weight.codes.device.type != "cpu":
        return f"the weight is on {weight.codes.device}, and the native kernels run on the CPU"
    return reason_against(weight.format, weight.shape) or library.reason_missing()


def packed(weight: QuantizedTensor) -> QuantizedTensor | PackedWeight:
    """`weight` in the form that runs fastest here: packed for the native kernels, or as it is. Missing kernels are warned of once."""
    reason = reason_for_reference(weight)
    if reason is None:
        return PackedWeight.pack(weight)
    _log.debug("a weight of shape %s runs in plain torch: %s", tuple(weight.shape), reason)
    if reason == library.reason_missing():
        warnings.warn(
            f"Quantized layers run in plain torch, which is slow. {reason}", stacklevel=2
        )  # shown once: same place, same text
    return weight


def explain(weight: QuantizedTensor | PackedWeight, activations: str = "fp32") -> str:
    """One line for people: which kernel multiplies by this weight, and why."""
    if isinstance(weight, PackedWeight):
        return f"native {library.instructions()}, {_NAMES[MODES[activations]]}"
    reason = reason_for_reference(weight)
    return (
        f"plain torch: {reason}"
        if reason
        else f"native {library.instructions()} once packed, {_NAMES[MODES[activations]]}"
    )

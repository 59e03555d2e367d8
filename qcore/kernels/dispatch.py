"""The choice of the kernel that multiplies, and the reason for it.

    activations   native kernel                                  reference
    "fp32"        float32                                        float32
    "int16"       int16, one scale per block of 32 inputs        float32
    "int8-block"  int8, one scale per block of 32 inputs         float32
    "int8"        int8, one scale per token                      int8, one scale per token

The native kernels need a C++ compiler, and an x86-64 processor with AVX2 or a 64-bit ARM processor. On a GPU
the kernels of `gpu.py` run. Elsewhere the reference kernels run. `explain` names the kernel and the
instruction set.
"""

import logging
import warnings
from collections.abc import Callable

import torch

from qcore.base.errors import InputError
from qcore.formats.tensor import QuantizedTensor
from qcore.kernels import gpu, library, ops, reference
from qcore.kernels.gpu import GpuWeight
from qcore.kernels.packed import PackedWeight, reason_against

Executable = QuantizedTensor | PackedWeight | GpuWeight
MODES = {
    "fp32": library.FLOAT,
    "int16": library.INT16,
    "int8-block": library.INT8,
    "int8": library.INT8_TOKEN,
}
_log = logging.getLogger(__name__)
_NAMES = {
    library.FLOAT: "exact float32 activations",
    library.INT16: "int16 activations, one scale per block of 32 inputs",
    library.INT8: "int8 activations, one scale per block of 32 inputs",
    library.INT8_TOKEN: "int8 activations, one scale per token",
}


def linear(
    x: torch.Tensor, weight: Executable, bias: torch.Tensor | None = None, activations: str = "fp32"
) -> torch.Tensor:
    """Multiply x (..., K) by `weight` (N, K), add `bias` (N,), and return (..., N) in x's dtype.

    A `PackedWeight` is multiplied by the native kernel, a `GpuWeight` by its kernel, a `QuantizedTensor` by
    the reference kernel. Gradients flow to x through the reference kernel.

    Raise `InputError` if x has another number of features, or if `activations` is unknown.
    """
    if x.shape[-1] != weight.shape[1]:
        raise InputError(f"The input has {x.shape[-1]} features, but this layer takes {weight.shape[1]}.")
    if activations not in MODES:
        raise InputError(f"Unknown activations {activations!r}. Known: {', '.join(MODES)}.")
    if isinstance(weight, QuantizedTensor):
        return reference.linear(x, weight, bias, "int8" if activations == "int8" else "fp32")
    if x.requires_grad and torch.is_grad_enabled():
        return reference.linear(x, weight.unpack(), bias, "int8" if activations == "int8" else "fp32")
    if isinstance(weight, GpuWeight):
        return weight.linear(x, bias)
    if _traced(x):
        return ops.linear_op(x, weight.panels, weight.table, bias, list(weight.numbers), MODES[activations])
    return ops.linear(x, weight, bias, MODES[activations])


def rows(weight: Executable, ids: torch.Tensor) -> torch.Tensor:
    """Look up the rows `ids` (...) of `weight` (N, K), and return them dequantized as float32 (..., K).

    Raise `IndexError` for ids outside 0 … N − 1.
    """
    if isinstance(weight, GpuWeight):
        weight = weight.unpack()
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize(rows=ids.flatten()).view(*ids.shape, weight.shape[1])
    if _traced(ids):
        return ops.rows_op(ids, weight.panels, weight.table, list(weight.numbers))
    return ops.rows(ids, weight)


def _traced(x: torch.Tensor) -> bool:
    """Return whether a call must go through torch's dispatcher: compilation, meta tensors, subclasses."""
    return torch.compiler.is_compiling() or type(x) is not torch.Tensor or x.device.type != "cpu"


def reason_for_reference(weight: QuantizedTensor) -> str | None:
    """Return None if a native kernel can multiply by `weight`, else the reason against the native kernels."""
    if weight.codes.device.type != "cpu":
        return f"the weight is on {weight.codes.device}, but the native kernels run on the CPU"
    return reason_against(weight.format, weight.shape) or library.reason_missing()


def packer(
    weight: QuantizedTensor, activations: str | None
) -> Callable[[QuantizedTensor], PackedWeight | GpuWeight] | None:
    """Return the function that packs `weight` for the native kernels, or for those of its GPU; None if the
    reference kernel has to run. A layer reads its inputs with `activations`, or looks rows up (None)."""
    if weight.codes.device.type != "cpu":
        kernel = gpu.kernel_of(weight, activations)
        return None if kernel.kind is None else kernel.kind.pack
    return PackedWeight.pack if reason_for_reference(weight) is None else None


def packed(weight: QuantizedTensor, activations: str | None = "fp32") -> Executable:
    """Return `weight` packed as `packer` says, or unchanged if the reference kernel has to run.

    Warn once if the native kernels are missing.
    """
    if pack := packer(weight, activations):
        return pack(weight)
    reason = reason_for_reference(weight)
    _log.debug("a weight of shape %s runs in plain torch: %s", tuple(weight.shape), reason)
    if reason == library.reason_missing():
        # The same text at the same place is shown once.
        warnings.warn(f"Quantized layers run in plain torch, which is slow. {reason}", stacklevel=2)
    return weight


def explain(weight: Executable, activations: str = "fp32") -> str:
    """Return one line for users: the kernel that multiplies by `weight`, and the reason for it."""
    if isinstance(weight, GpuWeight):
        return f"{weight.WORDS}, on {weight.device}"
    if isinstance(weight, QuantizedTensor) and weight.codes.device.type != "cpu":
        kernel = gpu.kernel_of(weight, activations)
        return f"plain torch: {kernel.reason}" if kernel.kind is None else f"{kernel.kind.WORDS}, once packed"
    if isinstance(weight, PackedWeight):
        return f"native {library.instructions()}, {_NAMES[MODES[activations]]}"
    reason = reason_for_reference(weight)
    return (
        f"plain torch: {reason}"
        if reason
        else f"native {library.instructions()} once packed, {_NAMES[MODES[activations]]}"
    )

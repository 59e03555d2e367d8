"""Floating-point types that this hardware multiplies at full speed.

A CPU without bfloat16 instructions runs a bfloat16 matrix product about a hundred times slower than a float32
one. Models stored in 16 bits are therefore computed in float32 there: each layer's weight is widened on use.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from qcore.base.cpu import has_fast_bf16


def computes_fast(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Return whether matrix products in `dtype` run at full speed on `device`."""
    if dtype == torch.float32 or torch.device(device).type != "cpu":
        return True
    return dtype == torch.bfloat16 and has_fast_bf16()


def mixes(device: torch.device | str = "cpu") -> bool:
    """Return whether `mixed` has an effect on `device`."""
    return torch.device(device).type == "cpu" and has_fast_bf16()


def mixed(device: torch.device | str = "cpu") -> AbstractContextManager:
    """Return a context in which float32 matrix products are computed in bfloat16 (`torch.autocast`).

    It has no effect on a device other than the CPU, or on a CPU without bfloat16 instructions. Parameters
    stay float32, so that training can use it.
    """
    return torch.autocast("cpu", torch.bfloat16) if mixes(device) else nullcontext()

"""Which floating-point types this hardware multiplies fast.

A CPU without bfloat16 instructions runs a bfloat16 matrix product some hundred times slower than a float32
one, so models stored in 16 bits are computed in float32 there: each layer's weight is widened when it is
used.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from qcore.base.cpu import has_fast_bf16


def computes_fast(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Whether matrix products in `dtype` run at full speed on `device`."""
    if dtype == torch.float32 or torch.device(device).type != "cpu":
        return True
    return dtype == torch.bfloat16 and has_fast_bf16()


def mixes(device: torch.device | str = "cpu") -> bool:
    """Whether `mixed` changes anything on `device`."""
    return torch.device(device).type == "cpu" and has_fast_bf16()


def mixed(device: torch.device | str = "cpu") -> AbstractContextManager:
    """Within it, matrix products of float32 are computed in bfloat16 (`torch.autocast`) on a CPU that is fast
    at it; else nothing changes. For training: what is learned stays float32."""
    return torch.autocast("cpu", torch.bfloat16) if mixes(device) else nullcontext()

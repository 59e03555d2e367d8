"""Reference kernels in plain torch: slow, readable, and correct on any device. Tests compare the fast kernels
with them.

    y = x · dequantize(W)ᵀ + bias

With `activations="int8"`, each token's activations are first quantized symmetrically, with one scale per
token:

    scale = max|x| / 127        x̂ = round(x / scale) · scale
"""

import torch
from torch.nn.functional import linear as dense_linear

from qcore.formats.tensor import QuantizedTensor


def linear(
    x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None, activations: str = "fp32"
) -> torch.Tensor:
    """Multiply `x` (..., K) by `weight` (N, K), add `bias` (N,), and return (..., N) in x's dtype.

    `activations` is "fp32" (exact) or "int8".
    """
    inputs = x.float() if x.dtype != torch.float64 else x
    if activations == "int8":
        inputs = quantize_tokens(inputs)
    return dense_linear(inputs, weight.dequantize(inputs.dtype), bias).to(x.dtype)


def quantize_tokens(x: torch.Tensor) -> torch.Tensor:
    """Round each token of `x` (..., K) to 255 levels and return the rounded values (..., K)."""
    scale = (x.abs().amax(dim=-1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (x / scale).round().clamp(-127, 127) * scale

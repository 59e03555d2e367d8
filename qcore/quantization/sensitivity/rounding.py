"""A single layer's weights as a method would round them, to estimate the cost of each candidate format.

Methods that read only the weight are called as they are. Methods that need text provide `methods.OneLayer`:
the result for one format (`rounded`, for measured divergences), and its expectation for many formats
(`expected`).
"""

from collections.abc import Callable

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.quantization import methods
from qcore.quantization.methods import METHODS, Matrices


def sees_inputs(method: str) -> bool:
    """Return whether the method reads the layer's inputs."""
    return METHODS[method].info.needs_text


def check_method(method: str) -> None:
    """Raise `InputError` for a method that cannot round a single layer."""
    usable = [
        each.info.name
        for each in METHODS.values()
        if (each.layer is not None or not each.info.needs_text) and each.info.grids != ("learned",)
    ]
    if method not in usable:
        raise InputError(
            f"{method} cannot choose formats layer by layer. Use one of the methods {', '.join(usable)}."
        )


def rounded(method: str, weights: Matrices, format: Format, hessian: torch.Tensor | None) -> Matrices:
    """Return the dequantized matrices (N, K), float32, of `weights` in `format`. They share the inputs with
    this `hessian` (K, K), which only methods that need text read."""
    layer, format = METHODS[method].layer, format.for_columns(weights[0].shape[1])
    if layer is not None:
        return layer.rounded(weights, format, _needed(method, hessian))
    return [methods.quantize(weight.float().contiguous(), format, method).dequantize() for weight in weights]


def expected(method: str, hessian: torch.Tensor | None) -> Callable[[Matrices, Format], Matrices]:
    """Return a function of (weights, format) that computes `rounded`, or its expectation if that is cheaper.
    Raise `InputError` for a method that cannot round a single layer."""
    check_method(method)
    layer = METHODS[method].layer
    if layer is not None and layer.expected is not None:
        rough = layer.expected(_needed(method, hessian))
        return lambda weights, format: rough(weights, format.for_columns(weights[0].shape[1]))
    return lambda weights, format: rounded(method, weights, format, hessian)


def _needed(method: str, hessian: torch.Tensor | None) -> torch.Tensor:
    if hessian is None:
        raise ValueError(f"{method} rounds by the inputs, so it needs their second moments")
    return hessian

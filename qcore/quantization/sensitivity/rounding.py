"""A layer's weights as a method would round them, the layer being taken by itself: what each candidate format
costs is seen on these.

Methods that look at a weight alone are simply asked. Methods that need text say how they round one layer (`methods.OneLayer`): as it will
be (`rounded`, which the measured divergences are of), and in expectation for many formats at once (`expected`).
"""

from collections.abc import Callable

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.quantization import methods
from qcore.quantization.methods import METHODS, Matrices


def sees_inputs(method: str) -> bool:
    """Whether the method rounds by what a layer is given."""
    return METHODS[method].info.needs_text


def check_method(method: str) -> None:
    """Raise `InputError` for a method whose rounding of one layer is not known here."""
    usable = [
        each.info.name
        for each in METHODS.values()
        if (each.layer is not None or not each.info.needs_text) and each.info.grids != ("learned",)
    ]
    if method not in usable:
        raise InputError(
            f"Formats can be chosen layer by layer with the methods {', '.join(usable)}; {method} is none of them."
        )


def rounded(method: str, weights: Matrices, format: Format, hessian: torch.Tensor | None) -> Matrices:
    """The matrices (N, K) of `weights`, which share the inputs with that `hessian` (K, K), in `format`,
    float32. Methods that look at weights alone need no Hessian."""
    layer = METHODS[method].layer
    if layer is not None:
        return layer.rounded(weights, format, _needed(method, hessian))
    return [methods.quantize(weight.float().contiguous(), format, method).dequantize() for weight in weights]


def expected(method: str, hessian: torch.Tensor | None) -> Callable[[Matrices, Format], Matrices]:
    """`rounded` for many formats, or its expectation where that is cheaper. Raises `InputError` as `check_method`
    does."""
    check_method(method)
    layer = METHODS[method].layer
    if layer is not None and layer.expected is not None:
        return layer.expected(_needed(method, hessian))
    return lambda weights, format: rounded(method, weights, format, hessian)


def _needed(method: str, hessian: torch.Tensor | None) -> torch.Tensor:
    if hessian is None:
        raise ValueError(f"{method} rounds by the inputs, so it needs their second moments")
    return hessian

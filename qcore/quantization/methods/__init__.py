"""How codes are chosen. Each method is one file: its `INFO`, read by recipes, plans and pages, and the
function that `register(INFO)` decorates.

A method that reads only the weight is `(weight (N, K), format) -> QuantizedTensor`. A method that
`needs_text` is `(work: BlockWork) -> …`: it reads one decoder block at a time, and puts the quantized tensors
into it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from qcore.base.errors import InputError
from qcore.base.extensions import ExtensibleRegistry
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.quantization.calibration.walk import BlockMethod
from qcore.recipes import methods as infos
from qcore.recipes.methods import MethodInfo

__all__ = [
    "METHODS",
    "Method",
    "MethodInfo",
    "OneLayer",
    "block_method",
    "quantize",
    "register",
    "without_text",
]

Matrices = list[torch.Tensor]
F = TypeVar("F", bound=Callable)


@dataclass(frozen=True)
class OneLayer:
    """How a method that needs text rounds a single layer, for sensitivities.

    rounded(weights, format, hessian)    the dequantized matrices (N, K), float32, of `weights` in `format`;
    the
                                         matrices share the inputs with this `hessian` (K, K)
    expected(hessian)                    a function of (weights, format) that estimates the same for many
    formats
                                         cheaply; None if `rounded` itself is cheap
    """

    rounded: Callable[[Matrices, Format, torch.Tensor], Matrices]
    expected: Callable[[torch.Tensor], Callable[[Matrices, Format], Matrices]] | None = None


@dataclass(frozen=True)
class Method:
    """A registered method.

    choose    the function that chooses codes
    joint     optional factory of a second stage that fine-tunes all blocks jointly (see `joint.py`)
    layer     how it rounds a single layer, for sensitivities
    """

    info: MethodInfo
    choose: Callable
    joint: Callable | None = None
    layer: OneLayer | None = None


def _import_all() -> None:
    """Import every file of this folder, so that each registers itself."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem != "__init__":
            importlib.import_module(f"{__name__}.{path.stem}")


METHODS: ExtensibleRegistry[Method] = ExtensibleRegistry("method", _import_all)


def register(
    info: MethodInfo, *, joint: Callable | None = None, layer: OneLayer | None = None
) -> Callable[[F], F]:
    """Return a decorator that registers a function as the method that `info` describes. Raise `ValueError` if
    the name is taken."""

    def enter(choose: F) -> F:
        infos.METHODS.enter(info.name, info)
        METHODS.register(info.name)(Method(info, choose, joint, layer))
        return choose

    return enter


def block_method(name: str) -> BlockMethod:
    """Return the method called `name`, which needs text, for the walk over blocks."""
    method = METHODS[name]
    return BlockMethod(method.choose, method.info.wants_drift, method.joint)


def without_text(method: str) -> str:
    """Return the words for codes that `method` chose from the weights alone, where no text reaches them."""
    return "rounded to nearest" if method == "rtn" else f"chosen by {method} from the weights alone"


def quantize(weight: torch.Tensor, format: Format, method: str) -> QuantizedTensor:
    """Quantize `weight` (N, K) of any float dtype to `format` with the method called `method`.

    Raise `InputError` for an unknown method, for one that needs calibration text, for a weight that is not a
    matrix of floats, or for one whose scale exceeds float16.
    """
    found = METHODS[method]
    if found.info.needs_text:
        raise InputError(
            f"The method {method} chooses codes from the layer inputs on calibration text, "
            "so it cannot quantize a single weight. Quantize the whole model, "
            "or choose a recipe that needs no text, such as int4-g64-hqq."
        )
    if weight.ndim != 2 or 0 in weight.shape or not weight.is_floating_point():
        raise InputError(
            f"A weight {tuple(weight.shape)} of type {weight.dtype} cannot be quantized: it must be a matrix "
            "of floating-point numbers with at least one row and one column."
        )
    return found.choose(weight.detach(), format)

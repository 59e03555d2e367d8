"""How codes are chosen. Each method is one file: its `INFO`, what recipes, plans and pages have to know of it, and the function that
`register(INFO)` decorates.

A method that looks at a weight alone is `(weight (N, K), format) -> QuantizedTensor`. One that `needs_text` is given one decoder block at
a time, `(work: BlockWork) -> …`, and puts the tensors that it chooses into it.
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

__all__ = ["METHODS", "Method", "MethodInfo", "OneLayer", "block_method", "quantize", "register"]

Matrices = list[torch.Tensor]
F = TypeVar("F", bound=Callable)


@dataclass(frozen=True)
class OneLayer:
    """How a method that needs text rounds a layer taken by itself, for sensitivities.

    `rounded(weights, format, hessian)` returns the matrices (N, K) of `weights`, which share the inputs with that
    `hessian` (K, K), as they are stored in `format`, float32. `expected(hessian)` returns a function of (weights,
    format) that estimates the same for many formats cheaply; None: `rounded` is cheap.
    """

    rounded: Callable[[Matrices, Format, torch.Tensor], Matrices]
    expected: Callable[[torch.Tensor], Callable[[Matrices, Format], Matrices]] | None = None


@dataclass(frozen=True)
class Method:
    """A registered method: `choose` is the function, `joint` makes what goes on learning when all blocks are there
    (see `joint.py`), `layer` is for sensitivities."""

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
    """A decorator that enters a function as the method `info` describes. Raises `ValueError` if the name is taken."""

    def enter(choose: F) -> F:
        infos.METHODS.enter(info.name, info)
        METHODS.register(info.name)(Method(info, choose, joint, layer))
        return choose

    return enter


def block_method(name: str) -> BlockMethod:
    """The method called `name`, which needs text, as the walk over blocks takes it."""
    method = METHODS[name]
    return BlockMethod(method.choose, method.info.wants_drift, method.joint)


def quantize(weight: torch.Tensor, format: Format, method: str) -> QuantizedTensor:
    """Quantize `weight` (N outputs, K inputs), any float dtype, to `format` by the method of that name.

    Raises `InputError` for an unknown method, one that needs calibration text, or a weight whose scale
    float16 cannot hold.
    """
    found = METHODS[method]
    if found.info.needs_text:
        raise InputError(
            f"The method {method} chooses codes from what layers are given when the model reads calibration text, so a weight cannot be "
            "quantized by itself. Quantize the whole model, or look at a recipe that needs no text, such as int4-g64-hqq."
        )
    return found.choose(weight.detach(), format)

"""How codes are chosen. Each method is one file.

Methods that look at a weight alone register a function `(weight (N, K), format) -> QuantizedTensor` in `METHODS`. Methods that look at
what layers are given register a function of one decoder block at a time (`qcore.calibration.BlockWork`) in `BLOCK_METHODS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qcore.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.tensor import Format, QuantizedTensor
from qcore.registry import Registry

Method = Callable[[torch.Tensor, Format], QuantizedTensor]
METHODS: Registry[Method] = Registry("method")


@dataclass(frozen=True)
class BlockMethod:
    """`choose` puts tensors into a block; `wants_drift`: it compares with the unquantized model, which is then run alongside. `together`
    makes what takes in the finished blocks and goes on learning when all are there, see `together.py`."""

    choose: Callable
    wants_drift: bool = False
    together: Callable | None = None

    def __call__(self, work) -> None:
        self.choose(work)


BLOCK_METHODS: Registry[BlockMethod] = Registry("method")


def quantize(weight: torch.Tensor, format: Format, method: str) -> QuantizedTensor:
    """Quantize `weight` (N outputs, K inputs), any float dtype, to `format` by the method of that name.

    Raises `InputError` for an unknown method, one that needs calibration text, or a weight whose scale float16 cannot hold.
    """
    if method in BLOCK_METHODS:
        raise InputError(
            f"The method {method} chooses codes from what layers are given when the model reads calibration text, so a weight cannot be "
            "quantized by itself. Quantize the whole model, or look at a recipe that needs no text, such as int4-g64-hqq."
        )
    return METHODS[method](weight.detach(), format)


def without_text(format: Format) -> str:
    """The method that stands in where no calibration text reaches a weight of `format`."""
    return "kmeans" if isinstance(format, Codebook) and format.fixed is None else "rtn"


from qcore.methods import awq, gptq, hessian, hqq, kmeans, rtn, signround, together  # noqa: E402, F401  (each registers itself)

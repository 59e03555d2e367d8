"""How codes are chosen. Each method is one file.

Methods that look at a weight alone register a function `(weight (N, K), format) -> QuantizedTensor` in
`METHODS`. Methods that look at what layers are given register a function of one decoder block at a time
(`qcore.quantization.calibration.BlockWork`) in `BLOCK_METHODS`.
"""

from collections.abc import Callable

import torch

from qcore.base.errors import InputError
from qcore.base.registry import Registry
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.quantization.calibration.walk import BlockMethod

Method = Callable[[torch.Tensor, Format], QuantizedTensor]
METHODS: Registry[Method] = Registry("method")


BLOCK_METHODS: Registry[BlockMethod] = Registry("method")


def quantize(weight: torch.Tensor, format: Format, method: str) -> QuantizedTensor:
    """Quantize `weight` (N outputs, K inputs), any float dtype, to `format` by the method of that name.

    Raises `InputError` for an unknown method, one that needs calibration text, or a weight whose scale
    float16 cannot hold.
    """
    if method in BLOCK_METHODS:
        raise InputError(
            f"The method {method} chooses codes from what layers are given when the model reads calibration text, so a weight cannot be "
            "quantized by itself. Quantize the whole model, or look at a recipe that needs no text, such as int4-g64-hqq."
        )
    return METHODS[method](weight.detach(), format)


from qcore.quantization.methods import awq, gptq, hessian, hqq, kmeans, rtn, signround, together  # noqa: E402, F401  (each registers itself)

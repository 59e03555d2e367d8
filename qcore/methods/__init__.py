"""How codes are chosen. Each method is one file that registers a function `(weight (N, K), format) -> QuantizedTensor`."""

from collections.abc import Callable

import torch

from qcore.formats.tensor import Format, QuantizedTensor
from qcore.registry import Registry

Method = Callable[[torch.Tensor, Format], QuantizedTensor]
METHODS: Registry[Method] = Registry("method")


def quantize(weight: torch.Tensor, format: Format, method: str) -> QuantizedTensor:
    """Quantize `weight` (N outputs, K inputs), any float dtype, to `format` by the method of that name.

    Raises `InputError` for an unknown method, or a weight whose scale float16 cannot hold.
    """
    return METHODS[method](weight.detach(), format)


from qcore.methods import kmeans, rtn  # noqa: E402, F401  (each registers itself in METHODS)

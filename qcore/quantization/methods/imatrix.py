"""Grids and codes of the least squared error, weighted by the importance of the inputs (llama.cpp's
"imatrix").

    minimize  Σ h_j · (w_j − code's value)²        h_j: the mean square of input j

per group of weights, as `grid.py` searches it; each weight then takes the nearest value. The importance comes
from calibration text, or from a file that llama.cpp's tool wrote. This is cheaper than GPTQ, which also sees
how inputs go together, and less exact.
"""

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.quantization.calibration import BlockWork
from qcore.quantization.methods import MethodInfo, OneLayer, register
from qcore.quantization.methods.grid import nearest, search
from qcore.quantization.methods.hessian import weighted

INFO = MethodInfo(
    "imatrix",
    "codes weighted by the inputs, from calibration text or an importance matrix",
    option="imatrix",
    needs_text=True,
    grids=("even", "fixed"),
    limits="needs a fixed grid; use -hessian to learn the table of kmeans4",
    examples=("gguf-q4_0-imatrix",),
)


def quantize(weight: torch.Tensor, format: Format, importance: torch.Tensor) -> QuantizedTensor:
    """Quantize `weight` (N, K) to `format`; `importance` (K,) is the mean square of each input, up to a
    factor."""
    importance = importance.clamp_min(1e-8 * importance.max())
    grid = search(weight.float(), format, importance)
    return grid.tensor(nearest(weight.float().T.contiguous(), grid))


def rounded(weights: list[torch.Tensor], format: Format, hessian: torch.Tensor) -> list[torch.Tensor]:
    """Return the dequantized matrices (N, K) of a single layer whose inputs have this `hessian` (K, K)."""
    return [quantize(weight, format, hessian.diagonal()).dequantize() for weight in weights]


@register(INFO, layer=OneLayer(rounded))
def choose(work: BlockWork) -> None:
    """Quantize a block stage by stage."""
    weighted(work, quantize)

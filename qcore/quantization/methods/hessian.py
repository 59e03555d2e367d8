"""Codebooks learned by k-means weighted with the diagonal of the Hessian (sensitivity-based non-uniform
quantization of SqueezeLLM, arXiv 2306.07629, section 4.1).

An error of weight j changes the layer's output by the error times input j, so its square is weighted by h_j,
the second moment of the input. Per channel, the table t of each row minimizes  Σ h_j · (w_j − t[code_j])².
Per group, weights are divided by their group's scale, one table is learned for the matrix with the importance
h_j · scale², and then each group's scale is searched.
"""

from collections.abc import Callable

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.quantization.calibration import BlockWork
from qcore.quantization.methods import MethodInfo, register
from qcore.quantization.methods.grid import nearest, search

INFO = MethodInfo(
    "kmeans-hessian",
    "weighted by the inputs on calibration text",
    option="hessian",
    needs_text=True,
    grids=("learned",),
    limits="learns the table of kmeans4; use -gptq with other formats",
    examples=("kmeans4-hessian",),
)


def quantize(weight: torch.Tensor, format: Format, importance: torch.Tensor) -> QuantizedTensor:
    """Quantize `weight` (N, K) to a `kmeans4` format; `importance` (K,) is the Hessian's diagonal. Raise
    `InputError` for other formats."""
    if not format.learned:
        raise InputError(
            "The method kmeans-hessian learns the table of a kmeans4 format; "
            f"it cannot be used with {format.label}."
        )
    importance = importance.clamp_min(1e-8 * importance.max())
    grid = search(weight.float(), format, importance)
    return grid.tensor(nearest(weight.float().T.contiguous(), grid))


@register(INFO)
def choose(work: BlockWork) -> None:
    """Quantize a block stage by stage (SqueezeLLM, arXiv 2306.07629, section 4.1)."""
    weighted(work, quantize)


def weighted(
    work: BlockWork, quantize: Callable[[torch.Tensor, Format, torch.Tensor], QuantizedTensor]
) -> None:
    """Choose codes for a block stage by stage with `quantize` (weight (N, K), format, importance (K,)).
    Inputs of an expert that no text reached count alike."""
    for stage in work.stages:
        work.step(", ".join(target.module.rpartition(".")[2] for target in stage.targets))
        fused = stage.targets[0].fused
        seen = work.moments_of_experts(stage.targets[0]) if fused else work.moments([stage])
        if fused:
            work.note_unreached(stage.targets[0], seen, "whose inputs count alike")
        importances = [
            moments.hessian.diagonal() if moments.tokens else torch.ones_like(moments.hessian[0])
            for moments in seen
        ]
        for target in stage.targets:
            pairs = zip(work.matrices(target), importances, strict=True)
            work.put(target, [quantize(matrix, target.format, importance) for matrix, importance in pairs])

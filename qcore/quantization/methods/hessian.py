"""Codebooks that are learned where the inputs are large: k-means weighted by the Hessian's diagonal
(SqueezeLLM, arXiv 2306.07629).

The error of weight j of a row changes the layer's output by its input times that error, so its square counts
h_j, the second moment of the input. Per channel, each row's table minimises  Σ h_j · (w_j − t[code_j])².  Per
group, weights are divided by their group's scale, one table is learned for the matrix with the weights h_j ·
scale², and then each group's scale is searched.
"""

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.select import Target
from qcore.quantization.calibration import BlockWork
from qcore.quantization.methods import MethodInfo, register
from qcore.quantization.methods.grid import nearest, search

INFO = MethodInfo(
    "kmeans-hessian",
    "where the inputs in calibration text are large",
    option="hessian",
    needs_text=True,
    grids=("learned",),
    limits="weights the learning of a table, so it goes with kmeans4; for other formats take -gptq",
    examples=("kmeans4-hessian",),
)


def quantize(weight: torch.Tensor, format: Format, importance: torch.Tensor) -> QuantizedTensor:
    """Quantize `weight` (N, K) to a `kmeans4` format; `importance` (K,) is the Hessian's diagonal. Raises
    `InputError` for others."""
    if not format.learned:
        raise InputError(
            f"The method kmeans-hessian learns the table of a kmeans4 format; it cannot be used with {format.label}."
        )
    importance = importance.clamp_min(1e-8 * importance.max())
    grid = search(weight.float(), format, importance)
    return grid.tensor(nearest(weight.float().T.contiguous(), grid))


@register(INFO)
def choose(work: BlockWork) -> None:
    """Quantize a block, stage by stage."""
    for stage in work.stages:
        work.step(", ".join(target.module.rpartition(".")[2] for target in stage.targets))
        if stage.targets[0].fused:
            (target,) = stage.targets
            seen = work.moments_of_experts(target)
            importances = [
                moments.hessian.diagonal() if moments.tokens else torch.ones(len(moments.hessian))
                for moments in seen
            ]
            work.put(target, [quantize(*pair) for pair in _pairs(work, target, importances)])
            continue
        importance = work.moments([stage])[0].hessian.diagonal()
        for target in stage.targets:
            work.put(target, [quantize(*pair) for pair in _pairs(work, target, [importance])])


def _pairs(work: BlockWork, target: Target, importances: list[torch.Tensor]) -> list[tuple]:
    return [
        (matrix, target.format, importance)
        for matrix, importance in zip(work.matrices(target), importances, strict=True)
    ]

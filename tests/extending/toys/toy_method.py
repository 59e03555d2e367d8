"""Two methods from outside the package, one file: one looks at a weight alone, one reads calibration text."""

from __future__ import annotations

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.quantization.calibration import BlockWork
from qcore.quantization.methods import MethodInfo, register
from qcore.quantization.methods.awq import clipped
from qcore.quantization.methods.rtn import quantize as round_to_nearest

CLIPPED = MethodInfo(
    "clipped-rows",
    "each output's weights clipped to four standard deviations",
    option="sigma4",
    grids=("even", "fixed"),
    work=1.3,
    streamed=4.0,
    examples=("int4-g64-sigma4",),
)
WEIGHTED = MethodInfo(
    "input-weighted",
    "ranges searched where the inputs in calibration text are large",
    option="weighted",
    needs_text=True,
    grids=("even", "fixed"),
)


@register(CLIPPED)
def clip(weight: torch.Tensor, format: Format) -> QuantizedTensor:
    """Quantize `weight` (N, K) after clipping."""
    limit = 4 * weight.float().std(dim=1, keepdim=True)
    return round_to_nearest(weight.float().clamp(-limit, limit), format)


@register(WEIGHTED)
def choose(work: BlockWork) -> None:
    """Quantize a block, stage by stage."""
    for stage in work.stages:
        importance = work.moments([stage])[0].hessian.diagonal()
        for target in stage.targets:
            work.put(target, [clipped(*work.matrices(target), target.format, importance)])

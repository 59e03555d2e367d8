"""AWQ: activation-aware weight quantization. Channels with large activations are scaled up before rounding,
so that their weights keep more precision (arXiv 2306.00978).

    Q(W · diag(s)) · diag(s)⁻¹ x ≈ W x
    s = (mean |x|)^α, normalized to √(max · min) = 1          α ∈ {0, 0.05, … 1}

α minimizes the error of the outputs, over all linear layers that share the input. s⁻¹ is folded into the
module that feeds them (see `calibration.folds`), so that it takes no storage and the unquantized model
computes the same function. Then each group's range is clipped if that lowers the error, weighted by the
second moments of the scaled inputs.

Layers whose input no module can absorb (behind an activation function) are only clipped. The paper samples
the error; here it is exact for the whole calibration text, from the Hessian.
"""

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.select import Target
from qcore.quantization.calibration import BlockWork
from qcore.quantization.calibration.folds import apply, find_fold
from qcore.quantization.methods import MethodInfo, OneLayer, register
from qcore.quantization.methods import quantize as quantize_alone
from qcore.quantization.methods.descent import objective
from qcore.quantization.methods.grid import nearest, search

INFO = MethodInfo(
    "awq",
    "channels scaled by their activations (AWQ), from calibration text",
    option="awq",
    needs_text=True,
    folds=True,
    grids=("even", "fixed"),
    limits="works on fixed grids, such as int4-g128-awq or nf4-g64-awq",
    examples=("int4-g128-awq",),
)

STEPS = 20
_SMALLEST = 1e-4


def scales(magnitude: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return s (K,) for the mean |x| of each channel, `magnitude` (K,)."""
    scale = magnitude.clamp_min(_SMALLEST * magnitude.max().clamp_min(_SMALLEST)).pow(alpha)
    return scale / (scale.max() * scale.min()).sqrt()


def search_alpha(
    weights: list[torch.Tensor], formats: list[Format], hessian: torch.Tensor, magnitude: torch.Tensor
) -> float:
    """Return the best α for matrices (N, K) that share their inputs, by grid search (AWQ, section 3.2); s
    follows from `magnitude` (K,), the mean |x| per channel."""
    best, chosen = None, 0.0
    for step in range(STEPS + 1):
        scale = scales(magnitude, step / STEPS)
        error = sum(
            scaled_error(weight, format, hessian, scale)
            for weight, format in zip(weights, formats, strict=True)
        )
        if best is None or error < best:
            best, chosen = error, step / STEPS
    return chosen


def scaled_error(weight: torch.Tensor, format: Format, hessian: torch.Tensor, scale: torch.Tensor) -> float:
    """Return the squared error of the layer's output, times 2 / n, if the columns of `weight` (N, K) are
    multiplied by `scale` (K,) before rounding."""
    rounded = quantize_alone(weight * scale, format, "rtn").dequantize() / scale
    return objective(weight.T, rounded.T, hessian)


def clipped(weight: torch.Tensor, format: Format, importance: torch.Tensor) -> QuantizedTensor:
    """Round `weight` (N, K) to nearest on the best clipped grid for inputs of this `importance` (K,)."""
    weight = weight.float()
    grid = search(weight, format, importance)
    return grid.tensor(nearest(weight.T.contiguous(), grid))


def rounded(weights: list[torch.Tensor], format: Format, hessian: torch.Tensor) -> list[torch.Tensor]:
    """Return the dequantized matrices (N, K) of a single layer: clipped, without folded scales."""
    return [clipped(weight, format, hessian.diagonal()).dequantize() for weight in weights]


@register(INFO, layer=OneLayer(rounded))
def choose(work: BlockWork) -> None:
    """Fold scales into the whole block, then clip and round its layers (AWQ, arXiv 2306.00978, section
    3.2)."""
    importance: dict[str, torch.Tensor] = {}
    for stage in work.stages:
        work.step(f"scales of {', '.join(target.module.rpartition('.')[2] for target in stage.targets)}")
        if stage.targets[0].fused:
            continue
        (moments,), fold = work.moments([stage], magnitude=True), find_fold(work, stage)
        scale = torch.ones_like(moments.hessian[0])
        if fold is not None and moments.magnitude is not None:
            weights = [work.matrices(target)[0] for target in stage.targets]
            magnitude = fold.shared(moments.magnitude)
            alpha = search_alpha(
                weights, [target.format for target in stage.targets], moments.hessian, magnitude[fold.source]
            )
            apply(work, stage, fold, scales(magnitude, alpha))
            scale = scales(magnitude, alpha)[fold.source]
        importance |= {target.name: moments.hessian.diagonal() / scale.square() for target in stage.targets}
    for stage in work.stages:
        for target in stage.targets:
            if target.fused:
                _experts(work, target)
            else:
                work.put(target, [clipped(work.matrices(target)[0], target.format, importance[target.name])])


def _experts(work: BlockWork, target: Target) -> None:
    seen = work.moments_of_experts(target)
    tensors = [
        clipped(
            matrix,
            target.format,
            moments.hessian.diagonal() if moments.tokens else torch.ones_like(moments.hessian[0]),
        )
        for matrix, moments in zip(work.matrices(target), seen, strict=True)
    ]
    work.note_unreached(target, seen, "whose inputs count alike")
    unreached = work.notes.get(target.name)
    folded = "Fused experts are clipped by their inputs; no scales are folded into them."
    work.notes[target.name] = folded if unreached is None else f"{folded} {unreached}"
    work.put(target, tensors)

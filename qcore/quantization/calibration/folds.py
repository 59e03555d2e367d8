"""Folding a scale per channel into the module that feeds a layer: multiply the layer's columns by s, and
divide the outputs of that module by s.

    norm → linears      divide the norm's weight by s, multiply the columns of all linears that read it by s
    linear → linear     divide the rows of the first by s, multiply the columns of the second by s:
                        value → output projection (attention only mixes tokens), up → down projection
                        (through an elementwise product)

Pairs are not looked up by architecture. Candidates are found by shape and order, and each is tried: scales
are folded in, and the output of the block must not change. It does change if an activation function lies
between, or if another layer reads the same norm; then the candidate is dropped. With grouped queries several
output channels read one value channel, so they share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qcore.layers.select import Target
from qcore.quantization.calibration.block_work import BlockWork
from qcore.quantization.calibration.inputs import Stage, watch

TOLERANCE = 1e-3  # relative change of the block's output: about 1e-6 by rounding, above 0.1 for a wrong pair


@dataclass(frozen=True)
class Fold:
    """The module `owner`, a norm or a linear layer, that feeds the linear layers of a stage. Channel j of
    their input is channel `source[j]` of its output."""

    owner: str
    is_norm: bool
    source: torch.Tensor

    def shared(self, per_channel: torch.Tensor) -> torch.Tensor:
        """Return the means (sources,) of `per_channel` (K,) over the input channels with the same source."""
        count = int(self.source.max()) + 1
        sums = per_channel.new_zeros(count).index_add_(0, self.source, per_channel)
        return sums / torch.bincount(self.source, minlength=count)


def find_fold(work: BlockWork, stage: Stage) -> Fold | None:
    """Return the fold of the module that feeds `stage`, or None if no candidate leaves the output
    unchanged."""
    if stage.targets[0].fused or any(target.name in work.uses for target in stage.targets):
        return None  # other layers read the same columns from other modules
    columns = work.matrices(stage.targets[0])[0].shape[1]
    before = work.run(work.hidden[0]).hidden
    for fold in _candidates(work, stage, columns):
        drawn = torch.rand(int(fold.source.max()) + 1, generator=torch.Generator().manual_seed(0))
        scale = 1 + drawn.to(before.device)
        apply(work, stage, fold, scale)
        error = (work.run(work.hidden[0]).hidden - before).norm() / before.norm()
        apply(work, stage, fold, 1 / scale)
        if error < TOLERANCE:
            return fold
    return None


def apply(work: BlockWork, stage: Stage, fold: Fold, scale: torch.Tensor) -> None:
    """Multiply the columns of the stage's layers by `scale` (sources,), and divide the outputs of the module
    that feeds them by it."""
    for target in stage.targets:
        work.replace(target, [matrix * scale[fold.source] for matrix in work.matrices(target)])
    owner: Any = work.block.get_submodule(fold.owner)
    if fold.is_norm:
        work.change(f"{fold.owner}.weight", owner.weight.detach() / scale)
        if getattr(owner, "bias", None) is not None:
            work.change(f"{fold.owner}.bias", owner.bias.detach() / scale)
        return
    (target,) = (target for target in work.targets if target.module == f"{work.prefix}.{fold.owner}")
    work.replace(target, [matrix / scale.unsqueeze(1) for matrix in work.matrices(target)])
    if getattr(owner, "bias", None) is not None:
        work.change(f"{fold.owner}.bias", owner.bias.detach() / scale)


def _candidates(work: BlockWork, stage: Stage, columns: int) -> list[Fold]:
    own = {target.name for target in stage.targets}
    straight = torch.arange(columns, device=work.hidden[0].device)
    (given,) = watch(lambda: work.run(work.hidden[0]), work.block, work.prefix, [stage])
    given, found = given.flatten(0, -2), []
    for name, made in _norm_outputs(work).items():
        if made.shape == given.shape and torch.equal(made, given):
            found.append(Fold(name, True, straight))
    sizes = _head_sizes(work)
    for target in work.targets:
        if (
            target.name in own
            or target.name in work.uses
            or target.fused
            or not _comes_before(work, target, stage)
        ):
            continue
        rows = len(work.matrices(target)[0])
        name = target.module.removeprefix(f"{work.prefix}.")
        if rows == columns:
            found.append(Fold(name, False, straight))
        elif rows < columns and columns % rows == 0:
            found += [
                Fold(name, False, straight // size // (columns // rows) * size + straight % size)
                for size in sizes
                if rows % size == 0
            ]
    return found


def _head_sizes(work: BlockWork) -> list[int]:
    """Return the sizes of the heads of the block's attention."""
    own = {getattr(module, "head_dim", None) for module in work.block.modules()}
    return sorted(size for size in own if isinstance(size, int) and size > 0)


def _comes_before(work: BlockWork, target: Target, stage: Stage) -> bool:
    order = [each.name for one in work.stages for each in one.targets]
    return target.name in order and order.index(target.name) < order.index(stage.targets[0].name)


def _norm_outputs(work: BlockWork) -> dict[str, torch.Tensor]:
    """Return {name in the block: output (n, K)} of every norm for the first window."""
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, arguments, output, name=name: outputs.__setitem__(
                name, output.flatten(0, -2).float()
            )
        )
        for name, module in work.block.named_modules()
        if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    try:
        work.run(work.hidden[0])
    finally:
        for hook in hooks:
            hook.remove()
    return outputs

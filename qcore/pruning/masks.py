"""Unstructured pruning: single weights of the linear layers become 0, block after block; each block is scored
on the outputs of the pruned blocks before it.

If the model is quantized before or after, a pruned weight gets the code of 0: the zero point of its group, or
the table's 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.registry import unknown
from qcore.base.transformers_internals import eager_experts
from qcore.formats.kinds import Format
from qcore.formats.packing import pack
from qcore.formats.sparse import zero_codes
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.modules import QuantExperts, QuantizedModule
from qcore.layers.select import Target, select
from qcore.pruning.scores import METHODS, keep
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.inputs import find_stages, watch, watch_experts
from qcore.quantization.calibration.states import State
from qcore.recipes import parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kept = dict[str, list[torch.Tensor]]  # by the parameter's name: boolean (N, K), one for each expert


@dataclass(frozen=True)
class Amount:
    """The pruning `method` and the share of weights to prune, which is 0.5 for 2:4. Raise `InputError` if
    invalid."""

    method: str
    share: float = 0.5

    def __post_init__(self):
        if self.method not in METHODS:
            raise unknown("pruning method", self.method, METHODS)
        if not 0 < self.share < 1:
            raise InputError(
                f"amount is {self.share!r}, but it must be more than 0 and less than 1: the "
                "share of the weights to prune."
            )
        if self.method == "2:4" and self.share != 0.5:
            raise InputError(
                "2:4 prunes two of every four weights, so its amount is 0.5 and not "
                f"{self.share:g}. Leave the amount out."
            )


@torch.no_grad()
def prune(model: PreTrainedModel, amount: Amount, ids: torch.Tensor | None, progress: Progress) -> Kept:
    """Set weights of the linear layers in the decoder's blocks of `model` to 0, in place. Return the masks of
    the weights that stay.

    `ids` (windows, T) are read for the norms of inputs; magnitude needs none. Head and embeddings are not
    pruned.
    """
    blocks = Blocks(model)
    targets = [
        target
        for target in select(model, parse("int8")).targets
        if target.kind in ("linear", "conv1d", "experts")
    ]
    reads = amount.method != "magnitude"
    if reads and ids is None:
        raise ValueError(f"{amount.method} reads a text")
    hidden = [] if ids is None or not reads else blocks.embed(ids)
    kept: Kept = {}
    for position in range(len(blocks)):
        prefix = f"{blocks.name}.{position}"
        progress(position, len(blocks), f"pruning block {position + 1} of {len(blocks)}")
        own = [target for target in targets if target.module.startswith(f"{prefix}.")]
        found = input_norms(blocks, position, own, hidden) if reads else {}
        for target in own:
            matrices = target.matrices(model)
            norms = found.get(target.name) or [None] * len(matrices)
            if reads and any(norm is None for norm in norms):
                norms = [
                    torch.ones(matrix.shape[1]) if norm is None else norm
                    for norm, matrix in zip(norms, matrices, strict=True)
                ]
            masks = [
                keep(matrix, norm, amount.method, amount.share)
                for matrix, norm in zip(matrices, norms, strict=True)
            ]
            pruned = [torch.where(mask, matrix, 0) for matrix, mask in zip(matrices, masks, strict=True)]
            target.put(model, pruned)
            kept[target.name] = masks
        hidden = [blocks.run(position, state) for state in hidden]
    progress(len(blocks), len(blocks), "")
    return kept


def input_norms(
    blocks: Blocks, position: int, targets: list[Target], hidden: list[State]
) -> dict[str, list[torch.Tensor | None]]:
    """Return ‖x‖ (K,) of each input over all windows for each target's matrices; None for an expert that
    received no token."""
    prefix, block = f"{blocks.name}.{position}", blocks.modules[position]
    stages, _ = find_stages(lambda: blocks.run(position, hidden[0]), block, prefix, targets)
    linear = [stage for stage in stages if not stage.targets[0].fused]
    totals: dict[str, list] = {}
    for state in hidden if linear else ():
        seen = watch(partial(blocks.run, position, state), block, prefix, linear)
        for stage, inputs in zip(linear, seen, strict=True):
            for target in stage.targets:
                totals.setdefault(target.name, [0.0])[0] += inputs.flatten(0, -2).square().sum(0)
    for target in (target for target in targets if target.fused):
        module = blocks.model.get_submodule(target.module)
        parameter = getattr(module, target.parameter).detach()
        sums: list[torch.Tensor | None] = [None] * len(parameter)
        with eager_experts(module):
            for state in hidden:
                for expert, inputs in watch_experts(
                    partial(blocks.run, position, state), parameter, target.transposed
                ):
                    more, before = inputs.square().sum(0), sums[expert]
                    sums[expert] = more if before is None else before + more
        totals[target.name] = sums
    return {
        name: [None if total is None else total.sqrt() for total in each] for name, each in totals.items()
    }


# -- in codes ------------------------------------------------------------------------------------------------


def check_format(format: Format) -> None:
    """Raise `InputError` if the format cannot hold a 0."""
    if format.learned:
        raise InputError(
            f"{format.label} learns its table, which need not hold a 0, so pruned weights would "
            "not stay 0. Choose int4 or nf4."
        )
    if format.affine or (not format.even and (format.fixed is None or not bool(format.fixed.eq(0).any()))):
        raise InputError(
            f"{format.label} has no code for 0, so pruned weights would not stay 0. Choose int4 or nf4."
        )


def without(tensor: QuantizedTensor, kept: torch.Tensor) -> QuantizedTensor:
    """Return `tensor` with the code of 0 wherever `kept` (N, K) is False."""
    zero = zero_codes(tensor)
    if zero is None:
        raise ValueError(f"{tensor.format.label} has no code for 0")
    codes = torch.where(kept, tensor.unpacked_codes(), zero)
    return replace(tensor, codes=pack(codes, tensor.format.bits))


def prune_codes(model: nn.Module, kept: Kept) -> None:
    """Set the pruned weights of a quantized `model` to the code of 0, in place."""
    for name, masks in kept.items():
        owner, _, parameter = name.rpartition(".")
        module = model.get_submodule(owner)
        experts = getattr(module, parameter, None)
        layers = list(experts.experts) if isinstance(experts, QuantExperts) else [module]
        for layer, mask in zip(layers, masks, strict=True):
            if isinstance(layer, QuantizedModule):
                layer.restore()
                layer.codes = without(layer.quantized, mask).codes


def sparsity(kept: Kept) -> dict[str, float]:
    """Return the share of zeros made by pruning, by the parameter's name."""
    return {
        name: 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        for name, masks in kept.items()
    }

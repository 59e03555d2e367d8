"""Measured sensitivities: the KL divergence of the model's output from the unquantized model's, with only one
layer quantized.

The hidden states before the layer's block do not change, so they are kept, and only this block and later ones
run again: half of the work on average. That is still one pass per layer and format, minutes for a small
model, so results are yielded per block, and an interrupted measurement resumes after the last finished block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING

import torch

from qcore.base.progress import Progress
from qcore.formats.kinds import Format
from qcore.layers.select import Target
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.block_work import BlockWork
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.inputs import Moments
from qcore.quantization.calibration.tail import Tail
from qcore.quantization.sensitivity.gradients import states
from qcore.quantization.sensitivity.rounding import check_method, rounded, sees_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 512


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    targets: list[Target],
    formats: list[Format],
    method: str,
    calibration: Calibration,
    ids: torch.Tensor,
    report: Progress,
    known: Set[str] = frozenset(),
) -> Iterator[dict[str, list[float]]]:
    """Yield per block {target's name: KL in nats per token, in each of the `formats`}, over the windows `ids`
    (windows, T).

    Methods that need text read the inputs on `calibration`. Blocks whose targets are all `known` are skipped.
    `report` gets (layers done, all layers, words). The logits of all of `ids` are held twice: 8 bytes per
    token and vocabulary entry. Raise `InputError` for a method that cannot round a single layer.
    """
    from qcore.evaluation.divergence import LogProbabilities, kl

    check_method(method)
    sees = sees_inputs(method)
    reader, blocks = (
        Blocks(model),
        Blocks(model),
    )  # two, because the recorded arguments of blocks depend on the length of windows
    own = blocks.inside(targets)
    total = sum(len(each) for each in own)
    words = "reading the calibration text"
    read = (
        calibration.ids if sees else calibration.ids[:1]
    )  # one window is enough to find the layers that share an input
    seen = states(reader, read, lambda i: report(0, total, f"block {i + 1} of {len(blocks)}: {words}"))
    between = states(
        blocks, ids, lambda i: report(0, total, f"block {i + 1} of {len(blocks)}: reading the text")
    )
    tail = Tail(blocks)
    base = [
        LogProbabilities(tail(window, state.hidden)) for window, state in zip(ids, between[-1], strict=True)
    ]

    def divergence(position: int) -> float:
        found = 0.0
        for window, state, before in zip(ids, between[position], base, strict=True):
            for later in range(position, len(blocks)):
                state = blocks.run(later, state)
            found += float(kl(before, LogProbabilities(tail(window, state.hidden))).sum())
        return found / ids.numel()

    done = 0
    for position, each in enumerate(own):
        done += len(each)
        if not each or {target.name for target in each} <= known:
            continue
        work = BlockWork(reader, position, each, seen[position], None, None, calibration, lambda words: None)
        result: dict[str, list[float]] = {}
        for stage in work.stages:
            experts = stage.targets[0].fused
            moments: Sequence[Moments | None]
            if sees:
                moments = work.moments_of_experts(stage.targets[0]) if experts else work.moments([stage])
            else:
                moments = [None] * len(work.matrices(stage.targets[0]))
            for target in stage.targets:
                place = f"block {position + 1} of {len(blocks)}: {target.module.rpartition('.')[2]}"
                report(done - len(each) + len(result), total, place)
                result[target.name] = _one(
                    work, target, formats, method, moments, partial(divergence, position)
                )
        yield result
    report(total, total, "")


def _one(
    work: BlockWork,
    target: Target,
    formats: list[Format],
    method: str,
    moments: Sequence[Moments | None],
    divergence: Callable[[], float],
) -> list[float]:
    module, matrices = work.module(target), [matrix.float() for matrix in work.matrices(target)]
    original, found = getattr(module, target.parameter), []
    try:
        for format in formats:
            tensors = [
                rounded(
                    method if each is None or each.tokens else "rtn",
                    [matrix],
                    format,
                    None if each is None else each.hessian,
                )[0]
                for matrix, each in zip(matrices, moments, strict=True)
            ]
            work.replace(target, tensors)
            found.append(divergence())
    finally:
        setattr(module, target.parameter, original)
    return found

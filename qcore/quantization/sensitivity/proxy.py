"""The loss of every layer in every format, predicted in one pass over the blocks: a few forward passes
instead of thousands.

Each layer's weights are rounded to each candidate format, which gives the error e = (Q − W) x of its output
at every token, and

    loss = ½ · mean over tokens and samples of (g · e)²        output error = Σ ‖e‖² / Σ ‖W x‖²

with the gradients g of `gradients.py`. The Hessian for the method and the loss come from different windows of
the text, because GPTQ fits the tokens of its Hessian, so the loss on the same tokens would be too low. For
fused experts, their block is run again with rounded weights; e and g are then those of the block's output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite, prod
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.formats.kinds import Format
from qcore.layers.select import Target
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.block_work import BlockWork
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.inputs import Moments
from qcore.quantization.calibration.states import State
from qcore.quantization.sensitivity.gradients import SAMPLES, BlockGradients, Seen, backwards, states
from qcore.quantization.sensitivity.rounding import check_method, expected, sees_inputs
from qcore.quantization.sensitivity.table import Layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS, HESSIAN_TOKENS = 2048, 8192


def split(
    calibration: Calibration, method: str, tokens: int = TOKENS
) -> tuple[Calibration, Calibration | None]:
    """Return the windows for the loss, `tokens` or a quarter of the text, and those for the Hessian of the
    `method`, up to `HESSIAN_TOKENS` of the rest; None if it reads only weights. A text of one window serves
    for both."""
    if not sees_inputs(method):
        return calibration.part(tokens), None
    count, window = calibration.ids.shape
    wanted = max(1, min(-(-tokens // window), count // 4))
    taken = [count * i // wanted for i in range(wanted)]
    left = [i for i in range(count) if i not in taken] or taken
    loss, others = (replace(calibration, ids=calibration.ids[rows]) for rows in (taken, left))
    return loss, others.part(HESSIAN_TOKENS)


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    targets: list[Target],
    formats: list[Format],
    method: str,
    calibration: Calibration,
    report: Progress,
    given: Calibration | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Layer]:
    """Return a row per target inside the decoder's blocks, in the order of `targets`, with the predicted loss
    in each of the `formats` as rounded by `method` (second-order expansion of KL by the Fisher information,
    see `gradients.py`). `calibration` is the text for the loss, `given` that for the method's Hessian (None:
    the same); see `split`. `report` gets (steps done, all steps, words).

    Memory: the hidden states between all blocks, (blocks + 1) · hidden size · 4 bytes per token of
    `calibration`, and 2 bytes per token of `given`.

    Raise `InputError` for a model without a list of blocks, or a method that cannot round a single layer.
    """
    check_method(method)
    blocks = Blocks(model)
    own = blocks.inside(targets)
    steps = 2 * len(blocks)
    inputs = _Inputs(model, given if sees_inputs(method) else None)
    if not any(own):
        raise InputError(
            "This recipe quantizes no layer inside the model's blocks, so there is nothing to choose. "
            "Quantize more modules, or give one format instead of a budget."
        )
    between = states(
        blocks,
        calibration.ids,
        lambda done: report(done, steps, f"block {done + 1} of {len(blocks)}: reading the text"),
    )
    inputs.read(
        lambda position: report(
            len(blocks), steps, f"block {position + 1} of {len(blocks)}: reading the layers' inputs"
        )
    )
    report(len(blocks), steps, "gradients of the predictions")
    rows: dict[str, Layer] = {}
    for found in backwards(blocks, calibration.ids, between, own, samples, seed):
        done = len(blocks) + len(blocks) - 1 - found.position
        report(done, steps, f"block {found.position + 1} of {len(blocks)}: rounding its layers")
        if own[found.position]:
            work = BlockWork(
                blocks,
                found.position,
                own[found.position],
                found.hidden,
                None,
                None,
                calibration,
                lambda words: None,
            )
            rows |= _block(
                work, inputs.work(found.position, own[found.position]) or work, found, formats, method
            )
    report(steps, steps, "")
    return [rows[target.name] for each in own for target in each if target.name in rows]


class _Inputs:
    """The inputs of every block on the text for a method's Hessian; empty for methods that read only
    weights."""

    def __init__(self, model: PreTrainedModel, calibration: Calibration | None):
        self.calibration = calibration
        self.blocks = None if calibration is None else Blocks(model)
        self._between: list[list[State]] = []

    def read(self, step: Callable[[int], None]) -> None:
        """Run the text through the model; 16 bits are enough for second moments."""
        if self.blocks is None or self.calibration is None:
            return
        hidden = self.blocks.embed(self.calibration.ids)
        for position in range(len(self.blocks)):
            step(position)
            self._between.append([replace(state, hidden=state.hidden.to(torch.bfloat16)) for state in hidden])
            hidden = [self.blocks.run(position, state) for state in hidden]

    def work(self, position: int, targets: list[Target]) -> BlockWork | None:
        """Return a block with its inputs, and free them: call once per block, from the last to the first."""
        if self.blocks is None or self.calibration is None:
            return None
        hidden = [replace(state, hidden=state.hidden.float()) for state in self._between[position]]
        del self._between[position:]
        return BlockWork(
            self.blocks, position, targets, hidden, None, None, self.calibration, lambda words: None
        )


def _block(
    work: BlockWork, given: BlockWork, found: BlockGradients, formats: list[Format], method: str
) -> dict[str, Layer]:
    rows: dict[str, Layer] = {}
    linear = [stage for stage in given.stages if not stage.targets[0].fused]
    moments: Sequence[Moments | None] = (
        given.moments(linear) if sees_inputs(method) and linear else [None] * len(linear)
    )
    seen_by = {stage.targets: each for stage, each in zip(linear, moments, strict=True)}
    for stage in work.stages:
        if stage.targets[0].fused:
            rows |= _experts(work, given, found, stage.targets[0], formats, method)
            continue
        weights = [work.matrices(target)[0].float() for target in stage.targets]
        known = seen_by[stage.targets]
        rounded = expected(method, None if known is None else known.hessian)
        seen = [found.seen[target.name] for target in stage.targets]
        sizes = [
            float((each.inputs @ weight.T).square().sum(dtype=torch.float64))
            for each, weight in zip(seen, weights, strict=True)
        ]
        losses: list[list[float]] = [[] for _ in weights]
        errors: list[list[float]] = [[] for _ in weights]
        for format in formats:
            for i, quantized in enumerate(rounded(weights, format)):
                loss, energy = _loss(seen[i], quantized.sub_(weights[i]))
                losses[i].append(loss)
                errors[i].append(energy / sizes[i] if sizes[i] else 0.0)
        for i, target in enumerate(stage.targets):
            rows[target.name] = row(work, target, formats, losses[i], errors[i])
    return rows


def _loss(seen: Seen, change: torch.Tensor) -> tuple[float, float]:
    """Return (½ · mean (g · e)², Σ ‖e‖²) for the change (N, K) of a layer's weights."""
    error = seen.inputs @ change.T
    return _quadratic(error, seen.gradients), float(error.square().sum(dtype=torch.float64))


def _quadratic(error: torch.Tensor, gradients: list[torch.Tensor]) -> float:
    total = sum(float((gradient * error).sum(-1).square().sum(dtype=torch.float64)) for gradient in gradients)
    return 0.5 * total / (len(gradients) * len(error))


def _experts(
    work: BlockWork,
    given: BlockWork,
    found: BlockGradients,
    target: Target,
    formats: list[Format],
    method: str,
) -> dict[str, Layer]:
    moments, matrices = given.moments_of_experts(target), work.matrices(target)
    before = [work.run(state).hidden for state in work.hidden]
    size = sum(
        float((out - state.hidden).square().sum(dtype=torch.float64))
        for out, state in zip(before, work.hidden, strict=True)
    )
    gradients = [
        torch.cat([each[0].flatten(0, -2) for each in sample if each[0] is not None])
        for sample in found.outgoing
    ]
    module = work.module(target)
    original = getattr(module, target.parameter)
    rounded = [expected(method if each.tokens else "rtn", each.hessian) for each in moments]
    losses, errors = [], []
    for format in formats:
        work.replace(
            target, [choose([matrix], format)[0] for choose, matrix in zip(rounded, matrices, strict=True)]
        )
        error = torch.cat(
            [
                (work.run(state).hidden - out).flatten(0, -2)
                for state, out in zip(work.hidden, before, strict=True)
            ]
        )
        losses.append(_quadratic(error, gradients))
        errors.append(float(error.square().sum(dtype=torch.float64)) / size if size else 0.0)
    setattr(module, target.parameter, original)
    return {target.name: row(work, target, formats, losses, errors)}


def row(
    work: BlockWork, target: Target, formats: list[Format], losses: list[float], errors: list[float]
) -> Layer:
    """Return the table's row of one target."""
    if not all(map(isfinite, (*losses, *errors))):
        raise InputError(
            f"The inputs of {target.name}, or its outputs, exceed float32 on the calibration text, so their "
            "loss has no figure. Skip the layer, or use another text."
        )
    matrices = work.matrices(target)
    rows, columns = matrices[0].shape
    kind = target.name.removeprefix(f"{work.prefix}.").removesuffix(".weight")
    return Layer(
        name=target.name,
        block=work.position,
        kind=kind,
        shape=tuple(getattr(work.module(target), target.parameter).shape),
        weights=prod((len(matrices), rows, columns)),
        nbytes=tuple(len(matrices) * format.for_columns(columns).nbytes(rows, columns) for format in formats),
        loss=tuple(losses),
        output_error=tuple(errors),
    )

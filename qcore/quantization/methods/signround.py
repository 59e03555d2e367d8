"""Learned rounding: after GPTQ, gradients decide which weights are rounded the other way (SignRound, arXiv
2309.05516, as in AutoRound).

GPTQ looks at one layer at a time. Here a whole block is looked at: its output, given what the quantized
blocks before it make of the text, is to be what it was in the unquantized model. Each weight has a position
on its grid, each group a gain on its scale, each norm a gain on its weight:

    ŵ = scale · gain · (round(position) − zero point)

and the loss is the squared error of the block's output, each token's divided by the size of that token's
output, because the norm of the next layer divides by it anyway (and a few tokens are thousands of times
larger than the others). Rounding lets gradients pass as if it were not there. Positions and gains move by the
sign of their gradients, by steps that shrink to nothing, so that a position can travel half a code in all.
Positions begin at GPTQ's codes, leaning towards the unrounded weight by up to `LEAN`.

A block that ends up worse on all of the text than it was after GPTQ keeps GPTQ's codes. This takes a hundred
times as long as GPTQ, and some twenty copies of a block's weights in memory; the time can be given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from qcore.formats.tensor import QuantizedTensor, round_scale
from qcore.quantization.calibration import BlockWork
from qcore.quantization.methods import MethodInfo, gptq, register
from qcore.quantization.methods.grid import Grid

INFO = MethodInfo(
    "signround",
    "rounding learned block by block (SignRound, as in AutoRound), from calibration text; the slowest",
    option="signround",
    needs_text=True,
    wants_drift=True,
    examples=("int4-g64-signround",),
)

STEPS, FEWEST, MOST = 100, 10, 1000
WINDOWS = 4  # windows of text a step
LEAN = 0.4
GAIN_RATE, NORM_RATE = 0.1, 0.02  # steps of the gains, as shares of a position's


@dataclass
class Learned:
    """The position (K, N) of each weight on its grid, and the gain (G, N) of each group's scale; both want
    gradients."""

    grid: Grid
    position: torch.Tensor
    gain: torch.Tensor

    @classmethod
    def begin(cls, solution: gptq.Solution) -> Learned:
        """At the codes that were found, leaning towards the weights that they were found for."""
        grid, codes = solution.grid, solution.codes
        step = grid.spread(grid.scale, len(codes)).clamp_min(torch.finfo(torch.float32).tiny)
        if grid.table is None:
            lean = (solution.goal - grid.values(codes)) / step
        else:
            gaps = grid.table.diff(dim=-1)
            typical = gaps.median() if gaps.ndim == 1 else gaps.median(dim=1).values
            lean = (solution.goal - grid.values(codes)) / (step * typical)
        return cls(
            grid,
            (codes + lean.clamp_(-LEAN, LEAN)).requires_grad_(),
            torch.ones_like(grid.scale, requires_grad=True),
        )

    def weight(self) -> torch.Tensor:
        """ŵ (N, K); gradients reach the position and the gain."""
        units = self.grid.units(self.codes()) + (self.position - self.position.detach())
        scale = self.grid.scale * self.gain
        if self.grid.scaled:
            scale = scale + (round_scale(scale.detach().T.contiguous(), self.grid.format).T - scale.detach())
        return (units * self.grid.spread(scale, len(units))).T

    def codes(self) -> torch.Tensor:
        """The codes (K, N) at which the positions are."""
        highest = self.grid.format.levels - 1 if self.grid.table is None else self.grid.table.shape[-1] - 1
        return self.position.detach().round().clamp_(self.grid.lowest, highest)

    def result(self) -> tuple[Grid, torch.Tensor]:
        """The grid and the codes (K, N) that were learned."""
        grid = self.grid.with_scale((self.grid.scale * self.gain).detach()) if self.grid.scaled else self.grid
        return grid, self.codes()

    def tensor(self) -> QuantizedTensor:
        """The stored form of what was learned."""
        grid, codes = self.result()
        return grid.tensor(codes)

    def update(self, rate: float) -> None:
        """One step against the sign of the gradients."""
        self.position.data.sub_(_sign(self.position), alpha=rate)
        self.position.grad = None
        if self.grid.scaled:
            self.gain.data.sub_(_sign(self.gain), alpha=rate * GAIN_RATE).clamp_(0.5, 1.5)
        self.gain.grad = None


def _sign(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.grad is None:
        raise ValueError("no gradient has reached what is learned")
    return tensor.grad.sign_()


@register(INFO, layer=gptq.LAYER)
def choose(work: BlockWork) -> None:
    """GPTQ for the block, then learning."""
    solutions = gptq.choose(work)
    if not solutions:
        return
    targets = {
        target.module.removeprefix(f"{work.prefix}.") + f".{target.parameter}": target
        for target in work.targets
    }
    learned = {
        name: Learned.begin(solutions[target.name])
        for name, target in targets.items()
        if target.name in solutions
    }
    norms = {
        name: value
        for name, value in work.block.named_parameters()
        if value.ndim == 1 and "norm" in name and name.endswith("weight")
    }
    gains = {name: torch.ones_like(value, requires_grad=True) for name, value in norms.items()}
    x_fp = work.x_fp
    if x_fp is None:
        raise ValueError("the walk keeps no full-precision activations")
    for i in range(len(work.hidden)):
        if i not in work.output_fp:
            work.output_fp[i] = work.blocks.run(work.position, x_fp[i], work.original)

    def tensors() -> dict[str, torch.Tensor]:
        made = {
            name: each.weight().T if targets[name].transposed else each.weight()
            for name, each in learned.items()
        }
        return made | {name: norms[name] * gains[name] for name in norms}

    before = _loss_of_all(work, {})
    _learn(work, learned, gains, tensors)
    with torch.no_grad():
        after = _loss_of_all(work, tensors())
    if not after < before:
        return
    for name, each in learned.items():
        grid, codes = each.result()
        work.put(targets[name], [replace(solutions[targets[name].name], grid=grid, codes=codes).tensor])
    for name in norms:
        work.change(name, (norms[name] * gains[name]).detach())


def _learn(
    work: BlockWork,
    learned: dict[str, Learned],
    gains: dict[str, torch.Tensor],
    tensors: Callable[[], dict[str, torch.Tensor]],
) -> None:
    """Take steps on a few windows of text at a time, as many as the time that was given allows."""
    generator = torch.Generator().manual_seed(work.position)
    count = min(WINDOWS, len(work.hidden))
    began, step, steps = time.monotonic(), 0, STEPS
    allowed = None if work.calibration.minutes is None else 60 * work.calibration.minutes / len(work.blocks)
    while step < steps:
        picked = torch.randperm(len(work.hidden), generator=generator)[:count].tolist()
        with torch.enable_grad():
            made = tensors()
            loss: Any = sum(_loss(work, i, made) for i in picked) / count
            loss.backward()
        rate = (1 - step / steps) / steps
        for each in learned.values():
            each.update(rate)
        for gain in gains.values():
            gain.data.sub_(_sign(gain), alpha=rate * NORM_RATE)
            gain.grad = None
        step += 1
        if allowed is not None and step == 3:
            steps = min(MOST, max(FEWEST, int(3 * allowed / (time.monotonic() - began))))
        if step % 10 == 0:
            work.step(f"learning, step {step} of {steps}")


def _loss(work: BlockWork, i: int, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The error of the block's output for window `i`, each token's relative to its size."""
    output = work.call_with(tensors, work.hidden[i])
    wanted = work.output_fp[i]
    return ((output - wanted).square().mean(-1) / wanted.square().mean(-1).clamp_min(1e-12)).mean()


@torch.no_grad()
def _loss_of_all(work: BlockWork, tensors: dict[str, torch.Tensor]) -> float:
    return sum(float(_loss(work, i, tensors)) for i in range(len(work.hidden))) / len(work.hidden)

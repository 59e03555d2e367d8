"""Learned rounding: after GPTQ, gradients decide which weights are rounded the other way (SignRound, arXiv
2309.05516, as in AutoRound).

GPTQ minimizes the error of one layer at a time. SignRound minimizes the error of a block: its output for the
inputs from the quantized blocks before it, against the output of the unquantized model. Each weight has a
position on its grid, each group a gain on its scale, each norm a gain on its weight:

    ŵ = scale · gain · (round(position) − zero point)

The gain stretches an affine grid about its middle.

The loss is the squared error of the block's output, relative to each token's output, because the norm of the
next layer divides by the token's size (and a few tokens are thousands of times larger than the others).
Gradients pass the rounding unchanged (straight-through estimator). Positions and gains are updated by the
sign of their gradients (signed SGD) with a rate that decays linearly to 0, so that a position can change by
half a code in all. Positions start at GPTQ's codes, offset towards the unrounded weight by up to `LEAN`.

A block whose loss on the whole text is not below that of GPTQ keeps GPTQ's codes. The method takes about a
hundred times as long as GPTQ, and memory for about twenty copies of a block's weights; the time can be
limited.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from qcore.formats.tensor import QuantizedTensor, stretched
from qcore.quantization.calibration import BlockWork
from qcore.quantization.methods import MethodInfo, gptq, register
from qcore.quantization.methods.grid import Grid
from qcore.quantization.methods.rtn import divisor

INFO = MethodInfo(
    "signround",
    "rounding learned block by block (SignRound, as in AutoRound), from calibration text; the slowest",
    option="signround",
    needs_text=True,
    wants_drift=True,
    examples=("int4-g64-signround",),
)

STEPS, FEWEST, MOST = 100, 10, 1000
WINDOWS = 4  # windows of text per step
LEAN = 0.4
GAIN_RATE, NORM_RATE = 0.1, 0.02  # rates of the gains, relative to the rate of positions


@dataclass
class Learned:
    """The learned parameters of a layer: the position (K, N) of each weight on its grid, and the gain (G, N)
    of each group's scale; both require gradients."""

    grid: Grid
    position: torch.Tensor
    gain: torch.Tensor

    @classmethod
    def begin(cls, solution: gptq.Solution) -> Learned:
        """Start at the codes of `solution`, offset by up to `LEAN` towards its unrounded weights."""
        grid, codes = solution.grid, solution.codes
        step = grid.spread(divisor(grid.scale), len(codes))
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
        """Return ŵ (N, K); gradients reach the position and the gain."""
        grid = self.grid
        units = grid.units(self.codes()) + (self.position - self.position.detach())
        scale, minimum = stretched(grid.scale, grid.minimum, self.gain, grid.format)
        if grid.scaled:
            stored = grid.with_scale(scale.detach(), None if minimum is None else minimum.detach())
            scale = stored.scale + (scale - scale.detach())
            if minimum is not None and stored.minimum is not None:
                minimum = stored.minimum + (minimum - minimum.detach())
        values = units * grid.spread(scale, len(units))
        return (values if minimum is None else values + grid.spread(minimum, len(units))).T

    def codes(self) -> torch.Tensor:
        """Return the codes (K, N) nearest to the positions."""
        highest = self.grid.format.levels - 1 if self.grid.table is None else self.grid.table.shape[-1] - 1
        return self.position.detach().round().clamp_(self.grid.lowest, highest)

    def result(self) -> tuple[Grid, torch.Tensor]:
        """Return the learned grid and codes (K, N)."""
        grid = self.grid
        if grid.scaled:
            grid = grid.with_scale(*stretched(grid.scale, grid.minimum, self.gain.detach(), grid.format))
        return grid, self.codes()

    def tensor(self) -> QuantizedTensor:
        """Return the stored form of the learned weight."""
        grid, codes = self.result()
        return grid.tensor(codes)

    def update(self, rate: float) -> None:
        """Take one step of size `rate` against the sign of the gradients (SignRound, arXiv 2309.05516,
        section 3). What the block does not use, or runs without gradients, keeps GPTQ's codes."""
        if self.position.grad is None:
            return
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
    """Quantize a block with GPTQ, then learn its rounding (SignRound, arXiv 2309.05516, section 3)."""
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
    if any(target.name in work.uses for target in work.targets):
        norms = {}  # these are likely to be shared, too
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
    """Take `STEPS` steps, or as many as the calibration's minutes allow, on a few windows of text each."""
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
        for gain in (gain for gain in gains.values() if gain.grad is not None):
            gain.data.sub_(_sign(gain), alpha=rate * NORM_RATE)
            gain.grad = None
        step += 1
        if allowed is not None and step == 3:
            steps = min(MOST, max(FEWEST, int(3 * allowed / (time.monotonic() - began))))
        if step % 10 == 0:
            work.step(f"learning its rounding, step {step} of {steps}")


def _loss(work: BlockWork, i: int, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the squared error of the block's output for window `i`, relative to each token's output."""
    output = work.call_with(tensors, work.hidden[i]).hidden
    wanted = work.output_fp[i].hidden
    return ((output - wanted).square().mean(-1) / wanted.square().mean(-1).clamp_min(1e-12)).mean()


@torch.no_grad()
def _loss_of_all(work: BlockWork, tensors: dict[str, torch.Tensor]) -> float:
    return sum(float(_loss(work, i, tensors)) for i in range(len(work.hidden))) / len(work.hidden)

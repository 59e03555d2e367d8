"""Learned rounding of all blocks jointly: fine-tune the quantized model to the predictions of the unquantized
one.

Methods that fit one block at a time cannot know which errors cancel in later blocks and which are amplified.
Here the loss is the quality metric itself, the divergence of the predictions on the calibration text
(knowledge distillation, as in LLM-QAT, arXiv 2305.17888, and in the second phase of EfficientQAT, arXiv
2407.11062):

    loss = mean over tokens of KL(unquantized || quantized)

The parameters are those of SignRound (see `signround.py`): the position of each weight on its grid, and a
gain per group scale and per norm. A step reads one window, and updates every parameter against the sign of
its gradient, with a rate that decays linearly to 0.

The gradients of a block's weights are used and freed before those of the block below are computed. Memory:
the model, a position (4 bytes) per weight, and autograd's tensors of one window. If the divergence on
held-out windows did not improve, the changes are rolled back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from qcore.formats.tensor import QuantizedTensor
from qcore.layers.select import Target
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.states import State, gradients
from qcore.quantization.calibration.tail import Tail
from qcore.quantization.methods import MethodInfo, gptq, register
from qcore.quantization.methods.grid import read
from qcore.quantization.methods.signround import GAIN_RATE, NORM_RATE, Learned

INFO = MethodInfo(
    "distilled",
    "GPTQ, then rounding learned jointly for all blocks from the unquantized model's predictions",
    option="distilled",
    needs_text=True,
    wants_drift=True,
)

STEPS, FEWEST, MOST = 160, 4, 4000
HELD_OUT = 2  # windows for validation


@dataclass(frozen=True)
class Window:
    """Tokens `ids` (T,), the state `first` before the first block, and the state `wanted` after the last
    block of the unquantized model."""

    ids: torch.Tensor
    first: State
    wanted: State


@dataclass
class Layer:
    """A quantized linear layer called `name`: its learned codes, and the `parameter` of `owner` that the
    block computes with."""

    name: str
    learned: Learned
    owner: nn.Module
    parameter: str
    transposed: bool  # stored (K, N)

    def install(self) -> None:
        """Write the current weight (N, K) into the parameter."""
        weight = self.learned.weight().detach()
        getattr(self.owner, self.parameter).data = (
            weight.T.contiguous() if self.transposed else weight.contiguous()
        )

    def update(self, gradient: torch.Tensor, rate: float) -> None:
        """Take a step of size `rate` against the sign of the `gradient` of the parameter."""
        gradient = gradient if self.transposed else gradient.T
        grid, learned = self.learned.grid, self.learned
        if grid.scaled:
            middle = 0 if grid.minimum is None else (grid.format.levels - 1) / 2  # a gain stretches about it
            slope = gradient * (grid.units(learned.codes()) - middle)
            count, size = len(grid.scale), grid.format.group_size or len(gradient)
            slope = (
                nn.functional.pad(slope, (0, 0, 0, count * size - len(slope))).view(count, size, -1).sum(1)
            )
            learned.gain.data.sub_(slope.sign_(), alpha=rate * GAIN_RATE).clamp_(0.5, 1.5)
        learned.position.data.sub_(gradient.sign(), alpha=rate)


@dataclass
class Norm:
    """A norm's weight: its `name` in the block, the `owner` module, its original `value` and the learned
    `gain`."""

    name: str
    owner: nn.Module
    value: torch.Tensor
    gain: torch.Tensor

    def install(self) -> None:
        self.owner.weight.data = self.value * self.gain

    def update(self, gradient: torch.Tensor, rate: float) -> None:
        self.gain.sub_((gradient * self.value).sign_(), alpha=rate * NORM_RATE)


class JointRefiner:
    """Second stage that fine-tunes the quantized blocks jointly. Its methods run under `torch.no_grad`."""

    def __init__(self):
        self.layers: list[list[Layer]] = []
        self.norms: list[list[Norm]] = []

    def add_block(
        self,
        prefix: str,
        block: nn.Module,
        original: nn.Module,
        targets: list[Target],
        weights: dict[str, list[QuantizedTensor]],
    ) -> None:
        """Add the finished block named `prefix`: the quantized tensors `weights` of its `targets`, and the
        unquantized block, `original`."""
        layers = []
        for target in targets:
            if target.fused or target.name not in weights:
                continue
            (unrounded,) = target.matrices(original, prefix)
            grid, codes = read(weights[target.name][0])
            learned = Learned.begin(gptq.Solution(grid, codes, unrounded.T.contiguous()))
            owner = target.owner(block, prefix)
            layers.append(Layer(target.name, learned, owner, target.parameter, target.transposed))
        self.layers.append(layers)
        known = {norm.owner.weight for norms in self.norms for norm in norms}  # blocks may share norms
        self.norms.append(
            [
                Norm(f"{name}.weight", module, module.weight.detach().clone(), torch.ones_like(module.weight))
                for name, module in block.named_modules()
                if "norm" in type(module).__name__.lower()
                and getattr(module, "weight", None) is not None
                and module.weight not in known
            ]
        )

    def learn(
        self,
        blocks: Blocks,
        ids: torch.Tensor,
        wanted: list[State],
        minutes: float | None,
        report: Callable[[str], None],
    ) -> bool:
        """Learn from the windows `ids` (windows, T), given the states `wanted` after the unquantized model's
        last block (as the second phase of EfficientQAT, with a KL loss).

        Take `STEPS` steps, or as many as fit into `minutes`. Return True if the held-out KL divergence
        improved; otherwise the changes are rolled back."""
        tail, first = Tail(blocks), blocks.embed(ids)
        windows = [Window(*each) for each in zip(ids, first, wanted, strict=True)]
        count = len(windows) - (HELD_OUT if len(windows) > 2 * HELD_OUT else 0)
        held = windows[count:] or windows
        before = self._divergence(blocks, tail, held)
        self._steps(blocks, tail, windows[:count], minutes, report)
        if self._divergence(blocks, tail, held) < before:
            return True
        for norm in (norm for norms in self.norms for norm in norms):
            norm.gain.fill_(1)
            norm.install()
        return False

    def results(self, position: int) -> dict[str, list]:
        """Return the quantized tensors of block number `position`, by the target's name."""
        return {layer.name: [layer.learned.tensor()] for layer in self.layers[position]}

    def _steps(
        self, blocks: Blocks, tail: Tail, windows: list[Window], minutes: float | None, report
    ) -> None:
        generator, began = torch.Generator().manual_seed(0), time.monotonic()
        step, steps = 0, STEPS
        queue: list[int] = []
        while step < steps:
            queue = queue or torch.randperm(len(windows), generator=generator).tolist()
            loss = self._step(blocks, tail, windows[queue.pop()], (1 - step / steps) / steps)
            step += 1
            if minutes is not None and step == 3:
                steps = min(MOST, max(FEWEST, int(3 * 60 * minutes / (time.monotonic() - began))))
            report(f"learning all blocks jointly, step {step} of {steps}, divergence {loss:.4f}")

    def _step(self, blocks: Blocks, tail: Tail, window: Window, rate: float) -> float:
        """Run one window forwards and backwards, and update each block as soon as its gradients are known.
        Return the window's divergence in nats per token."""
        passed, hidden = [], window.first
        for position, (layers, norms) in enumerate(zip(self.layers, self.norms, strict=True)):
            tensors = [getattr(layer.owner, layer.parameter) for layer in layers] + [
                norm.owner.weight for norm in norms
            ]
            for tensor in tensors:
                tensor.requires_grad_(True)
            with torch.enable_grad():
                state = hidden.detached()
                hidden = blocks.call(position, state)
            passed.append((state, hidden, tensors))
        with torch.enable_grad():
            last = hidden.hidden.detach().requires_grad_()
            loss = divergence(tail(window.ids, window.wanted.hidden).detach(), tail(window.ids, last))
            slopes = [*torch.autograd.grad(loss, last), *[None] * (len(hidden.tensors) - 1)]
        for layers, norms in zip(reversed(self.layers), reversed(self.norms), strict=True):
            state, outputs, tensors = passed.pop()
            before = state.tensors
            found = gradients(outputs, slopes, [*before, *tensors])
            slopes = found[: len(before)]
            del state, outputs, before
            learned: list[Layer | Norm] = [*layers, *norms]
            for tensor, part, slope in zip(tensors, learned, found[len(slopes) :], strict=True):
                tensor.requires_grad_(False)
                if slope is not None:
                    part.update(slope, rate)
                    part.install()
        return float(loss.detach())

    def _divergence(self, blocks: Blocks, tail: Tail, windows: list[Window]) -> float:
        total = 0.0
        for window in windows:
            hidden = window.first
            for position in range(len(blocks)):
                hidden = blocks.run(position, hidden)
            total += float(
                divergence(tail(window.ids, window.wanted.hidden), tail(window.ids, hidden.hidden))
            )
        return total / len(windows)


def divergence(wanted: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the mean over positions of KL(wanted || logits) in nats, for logits (T, V) of any float dtype;
    float32."""
    return _Divergence.apply(wanted, logits)


class _Divergence(torch.autograd.Function):
    """The divergence, a few rows at a time. Only the gradient, (softmax(logits) - softmax(wanted)) / T, takes
    as much memory as the logits."""

    ENTRIES = 1 << 19  # logits at a time: 2 MiB each in float32, which the cache holds

    @staticmethod
    def forward(ctx, wanted: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[1] else None
        total, count = logits.new_zeros((), dtype=torch.float64), len(logits)
        rows = max(1, _Divergence.ENTRIES // logits.shape[1])
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            log_p, log_q = (each[part].float().log_softmax(-1) for each in (wanted, logits))
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            if gradient is not None:
                gradient[part] = log_q.exp_().sub_(p).div_(count)
        ctx.save_for_backward(gradient)
        return (total / count).float()

    @staticmethod
    def backward(ctx, slope: torch.Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return None, gradient * slope


register(INFO, joint=JointRefiner, layer=gptq.LAYER)(gptq.choose)

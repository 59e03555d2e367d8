"""One block of a model as a method sees it: its layers in the order of execution, the moments of their
inputs, and the place to put their codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.func import functional_call

from qcore.base.transformers_internals import eager_experts
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.select import Target
from qcore.quantization.calibration.activation_cache import ActivationCache, endings
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.inputs import Moments, Stage, find_stages, watch, watch_experts
from qcore.quantization.calibration.states import State, join
from qcore.quantization.calibration.text import Calibration


@dataclass
class BlockWork:
    """The interface of a method to one block: take `stages` in order, collect `moments`, `put` tensors in
    place.

    hidden       states before the block per window, in the quantized model
    x_fp         the same in the unquantized model; None unless the method uses drift
    original     the unquantized block; None unless the method uses drift
    output_fp    states after the unquantized block by window, as far as they are known
    step         reports progress in words
    uses         {target's name: targets of later blocks that share its parameter}
    notes        a sentence per target that was not quantized as requested
    """

    blocks: Blocks
    position: int
    targets: list[Target]
    hidden: list[State]
    x_fp: list[State] | None
    original: nn.Module | None
    calibration: Calibration
    step: Callable[[str], None]
    uses: Mapping[str, list[Target]] = field(default_factory=dict)
    weights: dict[str, list[QuantizedTensor]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    output_fp: dict[int, State] = field(default_factory=dict)
    _inputs_fp: dict[Stage, dict[int, torch.Tensor]] | None = None

    def __post_init__(self):
        self.block = self.blocks.modules[self.position]
        self.prefix = f"{self.blocks.name}.{self.position}"
        after: list[State] = []
        with endings(self.block, self.prefix, self.targets) as ends:
            self.stages, self.unseen = find_stages(
                lambda: after.append(self.run(self.hidden[0])), self.block, self.prefix, self.targets
            )
        for state in self.hidden[1:]:
            if not self.unseen:
                break
            more, self.unseen = find_stages(partial(self.run, state), self.block, self.prefix, self.unseen)
            self.stages += more
        self.batches = self.blocks.batches(self.hidden)
        order = [stage.names for stage in self.stages]
        if not after[0].shares_with(self.hidden[0]):  # a part served from the cache would write nothing
            order, ends = [], {}
        self.cache = ActivationCache(self.block, self.prefix, order, ends)

    def run(self, state: State) -> State:
        """Return the state after the block, with its current weights, for the `state` before it."""
        return self.blocks.run(self.position, state)

    def call_with(self, tensors: dict[str, torch.Tensor], state: State) -> State:
        """Return the state after the block for `state`, with the parameters in `tensors` (named relative to
        the block) replaced; gradients flow."""
        swapped = lambda *arguments, **keywords: functional_call(self.block, tensors, arguments, keywords)  # noqa: E731
        return self.blocks.call(self.position, state, swapped)

    def module(self, target: Target) -> nn.Module:
        """Return the module that holds the target's parameter."""
        return target.owner(self.block, self.prefix)

    def matrices(self, target: Target) -> list[torch.Tensor]:
        """Return the target's current weight, float32 (N, K): one matrix, or one per expert."""
        return target.matrices(self.block, self.prefix)

    def replace(self, target: Target, matrices: list[torch.Tensor]) -> None:
        """Set the target's weight to `matrices` (N, K), without choosing its codes."""
        target.put(self.block, matrices, self.prefix)
        self.cache.invalidate(target.name)

    def put(self, target: Target, weights: list[QuantizedTensor]) -> None:
        """Choose `weights` for the target, one tensor per matrix; the block computes with them from now
        on."""
        self.weights[target.name] = weights
        self.replace(target, [weight.dequantize() for weight in weights])
        self.cache.mark_quantized(target.name, *linear_alone(target, self.module(target), weights))

    def change(self, name: str, value: torch.Tensor) -> None:
        """Set a small parameter of the block, such as a norm's weight, by its `name` relative to the
        block."""
        owner, _, last = name.rpartition(".")
        setattr(self.block.get_submodule(owner), last, nn.Parameter(value.contiguous(), requires_grad=False))
        self.changed.add(name)
        self.cache.invalidate()

    def moments(self, stages: list[Stage], *, magnitude: bool = False) -> list[Moments]:
        """Return the second moments (with `magnitude`, also the mean |x|) of the inputs of each of `stages`,
        from one pass over the text with the block in its current state."""
        totals: list[Moments] = []
        inputs_fp = self._layer_inputs_fp() if self.original is not None else None
        for number, part in enumerate(self.batches):
            state = join(self.hidden[part])
            with self.cache.batch(number):
                inputs = watch(partial(self.run, state), self.block, self.prefix, stages)
            for stage, each in zip(stages, inputs, strict=True):
                if state.hidden.dtype == torch.float32 and stage.uses == 1:  # otherwise `each` is a copy
                    self.cache.remember(number, stage.names, each)
            inputs = [each.flatten(0, -2) for each in inputs]
            before = [inputs_fp[stage].pop(number) if inputs_fp else None for stage in stages]
            totals = totals or [
                Moments.empty(each.shape[1], each.device, drift=inputs_fp is not None, magnitude=magnitude)
                for each in inputs
            ]
            for stage, total, each, x_fp in zip(stages, totals, inputs, before, strict=True):
                total.add(each, x_fp, _token_weight(state.hidden, len(each)) if self._writes(stage) else None)
            for place, each, weight in self._later_inputs(stages, state):
                totals[place].add(each, None, weight)  # their drift counts as 0
        for stage, total in zip(stages, totals, strict=True):
            total.check(stage.names)
        return totals

    def _later_inputs(
        self, stages: list[Stage], state: State
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """Yield (number of the stage, inputs (n, K), weights of their tokens) where later blocks use the same
        parameters. The blocks between are run as they are now."""
        found: dict[int, list[tuple[int, Stage]]] = {}
        for place, stage in enumerate(stages):
            for twin in self.uses.get(stage.targets[0].name, ()):
                found.setdefault(self.blocks.position_of(twin), []).append(
                    (place, Stage((twin,), stage.uses))
                )
        for position in range(self.position, max(found, default=-1) + 1):
            here, after, block = found.get(position, []), list[State](), self.blocks.modules[position]
            seen = watch(
                lambda: after.append(self.blocks.run(position, state)),  # noqa: B023
                block,
                f"{self.blocks.name}.{position}",
                [stage for _, stage in here],
                whole=True,
            )
            for (place, _), each in zip(here, seen, strict=True):
                inputs = each.flatten(0, -2)
                writes = self._writes(stages[place])
                yield place, inputs, _token_weight(state.hidden, len(inputs)) if writes else None
            state = after[0]

    def _writes(self, stage: Stage) -> bool:
        """Return whether the stage's layers add to the residual stream: their output has its width, and they
        are not the first stage, which reads it."""
        width = self.hidden[0].hidden.shape[-1]
        return stage != self.stages[0] and all(
            len(self.matrices(target)[0]) == width for target in stage.targets
        )

    def moments_of_experts(self, target: Target) -> list[Moments]:
        """Return the second moments per matrix of fused experts; an expert that received no token has 0
        tokens."""
        module, matrices = self.module(target), self.matrices(target)
        totals = [Moments.empty(matrix.shape[1], matrix.device) for matrix in matrices]
        with eager_experts(module):
            for state in self.hidden:
                parameter = getattr(module, target.parameter).detach()
                for expert, inputs in watch_experts(partial(self.run, state), parameter, target.transposed):
                    totals[expert].add(inputs)
        for total in totals:
            total.check([target.name])
        return totals

    def note_unreached(self, target: Target, seen: list[Moments], fallback: str) -> None:
        """Note the experts of `target` with no tokens in `seen`, and the `fallback` for them."""
        alone = sum(not moments.tokens for moments in seen)
        if alone:
            self.notes[target.name] = (
                f"No calibration text reached {alone} of {len(seen)} experts, {fallback}."
            )

    def _layer_inputs_fp(self) -> dict[Stage, dict[int, torch.Tensor]]:
        """Return the inputs (n, K) of each stage in the unquantized model, by batch, in bfloat16.

        The first call runs the original block to its end, which also fills `output_fp`, the next block's
        inputs. The caller removes the batches that it has used."""
        x_fp, original = self.x_fp, self.original
        if x_fp is None or original is None:
            raise ValueError("the walk keeps no full-precision activations")
        if self._inputs_fp is None:
            linear = [stage for stage in self.stages if not stage.targets[0].fused]
            self._inputs_fp = {stage: {} for stage in linear}
            for number, part in enumerate(self.batches):

                def run(part: slice = part) -> None:
                    output = self.blocks.run(self.position, join(x_fp[part]), original)
                    self.output_fp |= zip(range(part.start, part.stop), output.split(), strict=True)

                for stage, inputs in zip(
                    linear, watch(run, original, self.prefix, linear, whole=True), strict=True
                ):
                    self._inputs_fp[stage][number] = inputs.flatten(0, -2).to(torch.bfloat16)
        return self._inputs_fp


def _token_weight(hidden: torch.Tensor, tokens: int) -> torch.Tensor | None:
    """Return the weight (n, 1) of each token's error: 1 / RMS of the token in the residual stream `hidden`
    (B, T, H), scaled to 1 for the median token. None if the stream is not one vector for each of the
    `tokens`."""
    size = hidden.flatten(0, -2).float().square().mean(1, keepdim=True).sqrt()
    if len(size) != tokens:
        return None
    return size.median() / size.clamp_min(1e-6 * size.median().clamp_min(1e-30))


def linear_alone(target: Target, module: nn.Module, weights: list[QuantizedTensor]) -> tuple:
    """Return the arguments of `ActivationCache.mark_quantized` after the name: a linear layer and its weight,
    or nothing for other targets."""
    return (module, weights[0]) if target.kind == "linear" else ()

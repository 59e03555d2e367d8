"""Quantize a model block by block with calibration text: each block reads the output of the quantized blocks
before it.

    hidden states of all windows ← embeddings
    for each block:   collect the inputs of its layers
                      choose codes
                      hidden states ← quantized block (hidden states)

Memory: the model, one copy of the current block, the second moments of one input, the hidden states of all
windows in the quantized model (tokens · hidden size · 4 bytes), and as much for the outputs cached within the
block (`activation_cache.py`). Methods that use drift also hold the hidden states of the unquantized model (as
much again) and the inputs of the block's layers in it, 2 bytes per token and input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import functional_call

from qcore.base.progress import Progress
from qcore.base.transformers_internals import eager_experts
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.select import Target
from qcore.quantization.calibration.activation_cache import ActivationCache, endings
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.inputs import Moments, Stage, find_stages, watch, watch_experts
from qcore.quantization.calibration.states import State, join
from qcore.quantization.calibration.store import BlockStore
from qcore.quantization.calibration.text import Calibration
from qcore.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Finished:
    """A finished block: its name, the quantized tensors per target name, and a note per target that was not
    quantized as requested. `output_fp`: states after the unquantized block, by window."""

    name: str
    weights: dict[str, list[QuantizedTensor]]
    notes: dict[str, str]
    output_fp: dict[int, State] = field(default_factory=dict)
    cache: ActivationCache | None = None  # None if the block has no targets


@dataclass
class BlockWork:
    """The interface of a method to one block: take `stages` in order, collect `moments`, `put` tensors in
    place.

    hidden       states before the block per window, in the quantized model
    x_fp         the same in the unquantized model; None unless the method uses drift
    original     the unquantized block; None unless the method uses drift
    output_fp    states after the unquantized block by window, as far as they are known
    step         reports progress in words
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
        self.cache.mark_quantized(target.name, *_alone(target, self.module(target), weights))

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
        return totals

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
        return totals

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


@dataclass(frozen=True)
class BlockMethod:
    """A method as the walk calls it.

    choose         puts quantized tensors into a block wants_drift    compares with the unquantized model,
    which then runs alongside joint          optional factory of a second stage that fine-tunes all blocks
    jointly, see `methods/joint.py`
    """

    choose: Callable[[BlockWork], object]
    wants_drift: bool = False
    joint: Callable | None = None

    def __call__(self, work: BlockWork) -> None:
        self.choose(work)


@torch.no_grad()
def quantize_blocks(
    model: PreTrainedModel,
    targets: list[Target],
    method: BlockMethod,
    recipe: Recipe,
    calibration: Calibration,
    report: Progress,
    work: Path | None = None,
    identity: str | None = None,
) -> Iterator[Finished]:
    """Choose codes for the `targets` inside the decoder's blocks, and yield one block after another. Install
    a block's tensors before requesting the next: its state is freed.

    `work` is a folder that keeps finished blocks until all are done, and `identity` identifies the model; a
    run with the same two resumes after the last finished block. Raise `InputError` if the model has no list
    of blocks.
    """
    blocks = Blocks(model)
    inside = blocks.inside(targets)
    about = {
        "model": identity,
        "recipe": recipe.to_dict(),
        "text": calibration.record | {"fingerprint": None},
    }
    store = BlockStore(work if identity is not None else None, about | {"ids": calibration.ids.tolist()})
    report(0, len(blocks), f"reading {calibration.ids.numel()} tokens of calibration text")
    hidden = blocks.embed(calibration.ids)
    x_fp = list(hidden) if method.wants_drift else None
    refiner, waiting = method.joint() if method.joint else None, []
    for position, own in enumerate(inside):
        block = blocks.modules[position]
        original = _snapshot(block) if method.wants_drift else None
        kept = store.read(position)
        name = f"{blocks.name}.{position}"
        if kept is not None and set(kept[0]) <= {target.name for target in own}:
            report(position, len(blocks), f"restoring a finished block: {name}")
            finished = _restore(block, name, own, *kept)
        elif own:
            finished = _choose(
                method, blocks, position, own, hidden, x_fp, original, calibration, report, store
            )
        else:
            finished = Finished(name, {}, {})
        if refiner is not None:
            refiner.add_block(name, block, original, own, finished.weights)
        if position + 1 < len(blocks) or refiner is not None:
            _advance(blocks, position, hidden, x_fp, original, finished)
        del original
        if refiner is None:
            yield finished
        else:
            waiting.append(finished)
    if refiner is not None:
        yield from _refine_jointly(blocks, refiner, waiting, x_fp, calibration, report)
    report(len(blocks), len(blocks), "")
    store.remove()


def _refine_jointly(
    blocks: Blocks, refiner, finished: list[Finished], wanted, calibration: Calibration, report: Progress
):
    """Fine-tune all blocks jointly, then yield them; unchanged if that did not improve the divergence."""

    def step(what: str) -> None:
        report(len(blocks), len(blocks), what)

    better = refiner.learn(blocks, calibration.ids, wanted, calibration.minutes, step)
    for position, block in enumerate(finished):
        yield replace(block, weights=block.weights | refiner.results(position)) if better else block


def _token_weight(hidden: torch.Tensor, tokens: int) -> torch.Tensor | None:
    """Return the weight (n, 1) of each token's error: 1 / RMS of the token in the residual stream `hidden`
    (B, T, H), scaled to 1 for the median token. None if the stream is not one vector for each of the
    `tokens`."""
    size = hidden.flatten(0, -2).float().square().mean(1, keepdim=True).sqrt()
    if len(size) != tokens:
        return None
    return size.median() / size.clamp_min(1e-6 * size.median().clamp_min(1e-30))


def _snapshot(block: nn.Module) -> nn.Module:
    """Return a copy of the block that shares its tensors, and keeps them when the block's are replaced."""
    return deepcopy(block, {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())})


def _advance(
    blocks: Blocks,
    position: int,
    hidden: list[State],
    x_fp: list[State] | None,
    original: nn.Module | None,
    finished: Finished,
) -> None:
    """Replace the states of all windows before the block, `hidden` and `x_fp`, by those after it, in place,
    batch by batch."""
    output_fp = finished.output_fp
    for number, part in enumerate(blocks.batches(hidden)):
        with finished.cache.batch(number) if finished.cache else nullcontext():
            hidden[part] = blocks.run(position, join(hidden[part])).split()
        if x_fp is None:
            continue
        windows = range(part.start, part.stop)
        known = all(i in output_fp for i in windows)
        x_fp[part] = (
            [output_fp.pop(i) for i in windows]
            if known
            else blocks.run(position, join(x_fp[part]), original).split()
        )


def _choose(
    method: BlockMethod,
    blocks: Blocks,
    position: int,
    own: list[Target],
    hidden: list[State],
    x_fp: list[State] | None,
    original: nn.Module | None,
    calibration: Calibration,
    report: Progress,
    store: BlockStore,
) -> Finished:
    """Choose the codes of the targets `own` of block number `position` with `method`, and store them."""
    name = f"{blocks.name}.{position}"

    def step(what: str) -> None:
        report(position, len(blocks), f"block {position + 1} of {len(blocks)}: {what}")

    step("reading its inputs")
    task = BlockWork(blocks, position, own, hidden, x_fp, original, calibration, step)
    method(task)
    parameters = dict(task.block.named_parameters())
    store.write(
        position, task.weights, {parameter: parameters[parameter] for parameter in sorted(task.changed)}
    )
    return Finished(name, task.weights, task.notes, task.output_fp, task.cache)


def _restore(
    block: nn.Module,
    name: str,
    own: list[Target],
    weights: dict[str, list[QuantizedTensor]],
    changed: dict[str, torch.Tensor],
) -> Finished:
    """Install the tensors of a block that an earlier run finished."""
    for parameter, value in changed.items():
        owner, _, last = parameter.rpartition(".")
        setattr(block.get_submodule(owner), last, nn.Parameter(value, requires_grad=False))
    cache = ActivationCache(block, name, [])
    for target in own:
        if target.name in weights:
            chosen = weights[target.name]
            target.put(block, [weight.dequantize() for weight in chosen], name)
            cache.mark_quantized(target.name, *_alone(target, target.owner(block, name), chosen))
    notes = {
        target.name: "No calibration text reached it, so its codes were rounded to nearest."
        for target in own
        if target.name not in weights
    }
    return Finished(name, weights, notes, cache=cache)


def _alone(target: Target, module: nn.Module, weights: list[QuantizedTensor]) -> tuple:
    """Return the arguments of `ActivationCache.mark_quantized` after the name: a linear layer and its weight,
    or nothing for other targets."""
    return (module, weights[0]) if target.kind == "linear" else ()

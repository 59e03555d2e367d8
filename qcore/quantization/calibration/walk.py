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

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.base.progress import Progress
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.select import Target
from qcore.quantization.calibration.activation_cache import ActivationCache
from qcore.quantization.calibration.block_work import BlockWork, linear_alone
from qcore.quantization.calibration.blocks import Blocks
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
    tied: Mapping[Target, Target] | None = None,
) -> Iterator[Finished]:
    """Choose codes for the `targets` inside the decoder's blocks, and yield one block after another. Install
    a block's tensors before requesting the next: its state is freed.

    `work` is a folder that keeps finished blocks until all are done, and `identity` identifies the model; a
    run with the same two resumes after the last finished block. `tied` maps targets to those earlier in the
    model whose parameter they share: its codes are chosen once, for the inputs of all. Raise `InputError` if
    the blocks cannot be run one by one.
    """
    blocks, tied = Blocks(model), tied or {}
    inside = blocks.inside([target for target in targets if target not in tied])
    uses, first_name = later_uses(tied), dict[str, str]()
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
    shared = [position for position, each in enumerate(blocks.inside(list(tied))) if each]
    originals = {  # their weights are replaced before their turn
        position: _snapshot(blocks.modules[position]) for position in shared if method.wants_drift
    }
    for position, own in enumerate(inside):
        block = blocks.modules[position]
        original = originals.pop(position, None) or (_snapshot(block) if method.wants_drift else None)
        kept = store.read(position)
        name = f"{blocks.name}.{position}"
        if kept is not None and set(kept[0]) <= {target.name for target in own}:
            report(position, len(blocks), f"restoring a finished block: {name}")
            finished = _restore(block, name, own, *kept)
        elif own:
            finished = _choose(
                method, blocks, position, own, hidden, x_fp, original, calibration, report, store, uses
            )
        else:
            finished = Finished(name, {}, {})
        for target in own:
            twins = uses.get(target.name, [])
            if target.name not in finished.weights and twins:  # this block does not use it: the next one may
                later = blocks.position_of(twins[0])
                inside[later].append(twins[0])
                uses[twins[0].name] = twins[1:]
                first_name[twins[0].name] = first_name.get(target.name, target.name)
                continue
            for twin in twins:
                setattr(twin.owner(model), twin.parameter, getattr(target.owner(model), target.parameter))
        if refiner is not None:
            refiner.add_block(name, block, original, own, finished.weights)
        if position + 1 < len(blocks) or refiner is not None:
            _advance(blocks, position, hidden, x_fp, original, finished)
        del original
        named = {first_name.get(key, key): tensors for key, tensors in finished.weights.items()}
        finished = replace(finished, weights=named)
        if refiner is None:
            yield finished
        else:
            waiting.append(finished)
    if refiner is not None:
        yield from _refine_jointly(blocks, refiner, waiting, x_fp, calibration, report, first_name)
    report(len(blocks), len(blocks), "")
    store.remove()


def later_uses(tied: Mapping[Target, Target]) -> dict[str, list[Target]]:
    """Return {name of a target: the targets that share its parameter}."""
    uses: dict[str, list[Target]] = {}
    for target, first in tied.items():
        uses.setdefault(first.name, []).append(target)
    return uses


def _refine_jointly(
    blocks: Blocks,
    refiner,
    finished: list[Finished],
    wanted,
    calibration: Calibration,
    report: Progress,
    names,
):
    """Fine-tune all blocks jointly, then yield them; unchanged if that did not improve the divergence."""

    def step(what: str) -> None:
        report(len(blocks), len(blocks), what)

    better = refiner.learn(blocks, calibration.ids, wanted, calibration.minutes, step)
    for position, block in enumerate(finished):
        learned = {names.get(key, key): tensors for key, tensors in refiner.results(position).items()}
        yield replace(block, weights=block.weights | learned) if better else block


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
    uses: Mapping[str, list[Target]],
) -> Finished:
    """Choose the codes of the targets `own` of block number `position` with `method`, and store them."""
    name = f"{blocks.name}.{position}"

    def step(what: str) -> None:
        report(position, len(blocks), f"block {position + 1} of {len(blocks)}: {what}")

    step("reading its inputs")
    task = BlockWork(blocks, position, own, hidden, x_fp, original, calibration, step, uses)
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
            cache.mark_quantized(target.name, *linear_alone(target, target.owner(block, name), chosen))
    notes = {
        target.name: "No calibration text reached it, so its codes were rounded to nearest."
        for target in own
        if target.name not in weights
    }
    return Finished(name, weights, notes, cache=cache)

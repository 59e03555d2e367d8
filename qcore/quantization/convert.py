"""Apply a recipe to a model in memory, one tensor at a time, and return the ledger with a row per tensor.

The original of a weight is freed as soon as its quantized form is installed, so the peak memory is the model
plus one layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qcore import engines
from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.formats.budget import Budget
from qcore.formats.kinds import Format
from qcore.formats.mixture import Mixture
from qcore.formats.tensor import QuantizedTensor
from qcore.layers import expert_forward
from qcore.layers.embedding import scale_of
from qcore.layers.inventory import inventory, kept_row
from qcore.layers.modules import QuantEmbedding, QuantExperts, QuantizedModule, QuantLinear
from qcore.layers.select import Target, select
from qcore.quantization import methods
from qcore.quantization.calibration import Calibration, quantize_blocks
from qcore.quantization.calibration.blocks import find_blocks
from qcore.quantization.calibration.importance import Importances
from qcore.quantization.methods import imatrix
from qcore.quantization.methods.rotation import rotate
from qcore.quantization.narrow import store_as
from qcore.quantization.sensitivity.choosing import Chosen, choose_formats
from qcore.recipes import Engine, Float, Recipe
from qcore.recipes.ledger import Ledger, LedgerRow
from qcore.recipes.methods import needs_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantize(
    model: PreTrainedModel,
    recipe: Recipe,
    *,
    progress: Progress | None = None,
    calibration: Calibration | None = None,
    work: Path | None = None,
    identity: str | None = None,
    stamp: str | None = None,
) -> Ledger:
    """Apply `recipe` to `model` in place.

    Recipes with a calibrated method or a budget read `calibration`. Their finished blocks are kept in the
    folder `work` until all are done; a call with the same model (`identity`, its digest, and `stamp`, its
    files' state: see `Checkpoint`), recipe and text resumes after the last finished block.

    Raise `NotAppliedError` if the recipe changed nothing, or left out a weight that it was meant to quantize.
    Raise `InputError` for a model that is already quantized, a skip pattern that matches nothing, weights
    that the format cannot hold, or a missing calibration text.
    """
    if any(isinstance(module, QuantizedModule) for module in model.modules()):
        raise InputError(
            "This model is quantized already. Use the original checkpoint to quantize it another way."
        )
    if recipe.calibrated and calibration is None:
        raise InputError(
            f"{recipe.name} needs calibration text: load one with "
            "qcore.quantization.calibration.load_calibration."
        )
    report = progress or (lambda done, total, name: None)
    job = Job(model, recipe, report, calibration, work, identity, stamp)
    with torch.no_grad():
        rows, chosen = apply(recipe.weights, job)
    text = calibration.record if calibration is not None and recipe.calibrated else None
    return Ledger(recipe.name, tuple(rows), text, chosen).check()


@dataclass(frozen=True)
class Job:
    """The arguments of `quantize`."""

    model: PreTrainedModel
    recipe: Recipe
    report: Progress
    calibration: Calibration | None
    work: Path | None
    identity: str | None
    stamp: str | None

    @property
    def text(self) -> Calibration:
        """The calibration text. Raise `ValueError` if there is none."""
        if self.calibration is None:
            raise ValueError(f"{self.recipe.name} reads a calibration text")
        return self.calibration


Outcome = tuple[
    list[LedgerRow], dict | None
]  # the ledger's rows, and the record of the formats chosen within a budget


@singledispatch
def apply(weights: object, job: Job) -> Outcome:
    """Apply the job's recipe, by the type of its `weights`; `apply.register` adds a type."""
    raise InputError(f"{job.recipe.name} is a saved model: load it instead of quantizing it again.")


@apply.register
def _(weights: Engine, job: Job) -> Outcome:
    return engines.load(weights.backend).apply(job.model, job.recipe, job.report, quantize), None


@apply.register
def _(weights: Float, job: Job) -> Outcome:
    return store_as(job.model, weights.dtype, job.report), None


@apply.register(Format)
@apply.register(Mixture)
@apply.register(Budget)
def _(weights: Format | Mixture | Budget, job: Job) -> Outcome:
    outcome = _quantize_own(job)
    run_whole_steps(job.model)
    return outcome


def run_whole_steps(model: PreTrainedModel) -> None:
    """Attach the native whole-step decoder to a model of quantized layers, if it supports the model; see
    `qcore.runtime`."""
    from qcore.runtime import attach

    attach(model)


# -- own formats ---------------------------------------------------------------------------------------------


def _quantize_own(job: Job) -> Outcome:
    model, recipe, report, identity = job.model, job.recipe, job.report, job.identity
    loaded = {name: 0 if shared else tensor.nbytes for name, tensor, shared in inventory(model)}
    rotated = _rotate(model, recipe, report) if recipe.prepare == "rotation" else {}
    selection = select(model, recipe)
    chosen: Chosen | None = None
    targets = list(selection.targets)
    if isinstance(recipe.weights, Budget):
        chosen = choose_formats(model, recipe, targets, job.text, report, identity, job.stamp)
        targets = [
            replace(target, format=chosen.formats.get(target.name, target.format)) for target in targets
        ]
        identity = identity and f"{identity} {chosen.digest}"
    identity = f"{identity} {job.stamp}" if identity and job.stamp else identity
    twins = {name: shared for name, _, shared in inventory(model)}
    rows = {
        name: replace(
            kept_row(
                name,
                tensor,
                shared,
                rotated.get(name, selection.kept.get(name)),
                intended=name not in selection.missed,
            ),
            bytes_before=loaded[name],
        )
        for name, tensor, shared in inventory(model)
    }
    done: dict[str, list[QuantizedTensor]] = {}

    def finish(target: Target, weights: list[QuantizedTensor], note: str | None = None) -> None:
        install(model, target, weights)
        twin = twins[target.name] if twins[target.name] in done else None
        rows[target.name] = replace(
            rows[target.name],
            format=weights[0].format.label,
            bytes_after=0 if twin else sum(weight.nbytes for weight in weights),
            reason=f"Shares the codes of {twin}." if twin else note,
            intended=True,
            shares=twin,
        )
        done[target.name] = weights

    given = _importances(job, targets)
    if needs_text(recipe.method) and given is None:
        own = [target for target in targets if target.method == recipe.method]
        names = {target.name: target for target in own}
        tied = {target: names[first] for target in own if (first := twins[target.name]) in names}
        method = methods.block_method(recipe.method)
        walk = quantize_blocks(model, own, method, recipe, job.text, report, job.work, identity, tied)
        for block in walk:
            for name, weights in block.weights.items():
                finish(names[name], weights, block.notes.get(name))
    left = [target for target in targets if target.name not in done]
    blocks = f"{find_blocks(model)[0]}." if needs_text(recipe.method) and given is None else ""
    for i, target in enumerate(left):
        report(i, len(left), target.name)
        twin = twins[target.name]
        known = None if given is None or twin in done else given.of(target)
        if known is not None:
            pairs = zip(target.matrices(model), known, strict=True)
            finish(target, [imatrix.quantize(matrix, target.format, each) for matrix, each in pairs])
            continue
        alone = replace(target, method=target.format.method) if needs_text(target.method) else target
        if given is not None:
            source = "The importance matrix lacks it"
        elif target.module.startswith(blocks):
            source = "Calibration text does not reach it"
        else:
            source = "It lies outside the blocks, through which calibration walks"
        words = methods.without_text(alone.method)
        note = f"{source}, so its codes were {words}." if alone is not target else None
        finish(target, done[twin] if twin in done else choose_codes(model, alone), note)
    report(len(left), len(left), "")
    return list(rows.values()), None if chosen is None else chosen.record


def _rotate(model: PreTrainedModel, recipe: Recipe, report: Progress) -> dict[str, str]:
    """Rotate `model`, after checking that the recipe can be applied to it."""
    select(model, recipe)  # a skip pattern that matches nothing
    if needs_text(recipe.method):
        find_blocks(model)
    report(0, 0, "rotating the residual stream")
    return rotate(model)


def _importances(job: Job, targets: list[Target]) -> Importances | None:
    """Return the importances in the file that the recipe's method reads; None if it reads text. Raise
    `InputError` if the file is of another model."""
    given = None if job.calibration is None else job.calibration.importance
    if given is None or job.recipe.method != imatrix.INFO.name:
        return None
    if job.recipe.prepare != "none":
        raise InputError(
            f"{job.recipe.name} rotates the model, so the importance of its inputs is no longer that of "
            f"{given.name}. Leave the importance matrix out: it is then computed from calibration text."
        )
    found = Importances(job.model, given)
    found.check(targets)
    return found


def choose_codes(model: PreTrainedModel, target: Target) -> list[QuantizedTensor]:
    """Quantize the target's matrices: return one tensor, or one per expert."""
    try:
        return [methods.quantize(matrix, target.format, target.method) for matrix in target.matrices(model)]
    except InputError as error:
        raise InputError(f"{target.name}: {error}") from error


def install(model: PreTrainedModel, target: Target, weights: list[QuantizedTensor]) -> None:
    """Replace the target's parameter by `weights`; the original is freed."""
    parent_name, _, last = target.module.rpartition(".")
    old: Any = model.get_submodule(target.module)
    new: nn.Module
    if target.fused:
        delattr(old, target.parameter)
        setattr(old, target.parameter, QuantExperts(weights, target.transposed, target.activations))
        expert_forward.use(old)
        return
    if target.kind == "embedding":
        new = QuantEmbedding(weights[0], old.padding_idx, scale_of(old))
    else:
        new = QuantLinear(weights[0], None if old.bias is None else old.bias.data, target.activations)
    setattr(model.get_submodule(parent_name), last, new)

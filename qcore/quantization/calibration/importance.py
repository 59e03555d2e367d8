"""Importance of the inputs of each weight: computed from calibration text, or found for a model in a file of
llama.cpp.

    importance(j) = 1/n · Σ x_j²       over n tokens, as the unquantized model computes them
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.transformers_internals import eager_experts
from qcore.interop.gguf_names import Names
from qcore.layers.select import Target, select
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.inputs import find_stages, watch, watch_experts
from qcore.quantization.calibration.states import State
from qcore.quantization.calibration.text import Calibration
from qcore.recipes import parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qcore.models.imatrix import ImportanceMatrix


class Importances:
    """The importance of the inputs of `model`'s weights, from the file `matrix`. Raise `InputError` for an
    architecture that GGUF does not know."""

    def __init__(self, model: PreTrainedModel, matrix: ImportanceMatrix):
        self._model, self._matrix = model, matrix
        self._names = Names(model.config)

    def check(self, targets: list[Target]) -> None:
        """Raise `InputError` unless the file lists some of the `targets`, in their shapes."""
        if not [target for target in targets if self.of(target) is not None]:
            raise InputError(
                f"{self._matrix.name} is of another model: it lists none of the weights to quantize. Its "
                f"first is {next(iter(self._matrix.values))!r}."
            )

    def of(self, target: Target) -> list[torch.Tensor] | None:
        """Return the importance (K,) per matrix of `target`; None if the file lists none. Raise `InputError`
        if it belongs to another shape."""
        count, rows, columns = target.shape(self._model)
        shape = (count, rows, columns) if target.fused else (rows, columns)
        for place in self._names.places(target.name, shape):
            found = self._matrix.values.get(place.name)
            if found is None:
                continue
            if found.shape != (count, columns):
                raise InputError(
                    f"{self._matrix.name} is of another model: {place.name} has the importance of "
                    f"{found.shape[0]} x {found.shape[1]} inputs, and this model has {count} x {columns}."
                )
            return list(found.unbind(0))
        return None


@torch.no_grad()
def compute(
    model: PreTrainedModel, calibration: Calibration, report: Progress
) -> tuple[dict[str, torch.Tensor], dict[str, list[int]]]:
    """Return {parameter: importance (matrices, K)} and {parameter: tokens per matrix} of the linear layers
    and experts in the blocks of `model` over the `calibration` text. Raise `InputError` if the model has no
    list of blocks."""
    blocks, targets = Blocks(model), select(model, parse("int4-g64")).targets
    inside, hidden = blocks.inside(targets), blocks.embed(calibration.ids)
    found: dict[str, torch.Tensor] = {}
    counts: dict[str, list[int]] = {}
    for position, block in enumerate(blocks.modules):
        report(position, len(blocks), f"block {position + 1} of {len(blocks)}")
        prefix = f"{blocks.name}.{position}"
        own = inside[position]
        run = partial(blocks.run, position)
        stages, _ = find_stages(partial(run, hidden[0]), block, prefix, own)
        linear = [stage for stage in stages if not stage.targets[0].fused]
        fused = [stage.targets[0] for stage in stages if stage.targets[0].fused]
        sums = {
            target.name: torch.zeros(_shape(target, model), dtype=torch.float64, device=hidden[0].device)
            for target in own
        }
        tokens = {target.name: [0] * len(sums[target.name]) for target in own}
        for target in fused:
            with eager_experts(target.owner(block, prefix)):
                for state in hidden:
                    _watch_experts(partial(run, state), target, block, prefix, sums, tokens)
        for i, state in enumerate(hidden):
            outputs: list[State] = []
            inputs = watch(lambda: outputs.append(run(state)), block, prefix, linear, whole=True)  # noqa: B023
            for stage, seen in zip(linear, inputs, strict=True):
                seen = seen.flatten(0, -2)
                for target in stage.targets:
                    sums[target.name][0] += seen.double().square().sum(0)
                    tokens[target.name][0] += len(seen)
            hidden[i] = outputs[0]
        for name, total in sums.items():
            reached = torch.tensor(tokens[name], device=total.device).unsqueeze(1)
            found[name] = torch.where(reached > 0, total / reached.clamp_min(1), 1.0).float()
            counts[name] = tokens[name]
    report(len(blocks), len(blocks), "")
    return found, counts


def named(
    model: PreTrainedModel, values: dict[str, torch.Tensor], counts: dict[str, list[int]]
) -> tuple[dict[str, torch.Tensor], dict[str, Sequence[int]]]:
    """Return `values` and `counts` by the names of the weights in a GGUF model. Raise `InputError` for an
    architecture that GGUF does not know."""
    names = Names(model.config)
    renamed: dict[str, torch.Tensor] = {}
    tokens: dict[str, Sequence[int]] = {}
    shapes = {target.name: target.shape(model) for target in select(model, parse("int4-g64")).targets}
    for parameter, value in values.items():
        for place in names.places(parameter, shapes[parameter] if len(value) > 1 else shapes[parameter][1:]):
            renamed[place.name], tokens[place.name] = value, counts[parameter]
    return renamed, tokens


def _shape(target: Target, model: PreTrainedModel) -> tuple[int, int]:
    count, _, columns = target.shape(model)
    return count, columns


def _watch_experts(run, target: Target, block, prefix: str, sums, tokens) -> None:
    weight = getattr(target.owner(block, prefix), target.parameter)
    for expert, inputs in watch_experts(run, weight, target.transposed):
        sums[target.name][expert] += inputs.double().square().sum(0)
        tokens[target.name][expert] += len(inputs)

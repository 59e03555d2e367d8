"""Stored bytes of a model under a recipe from its shapes alone, exact for qcore's formats.

qcore's formats are counted as their tensors are stored, other libraries' as codes and scales, rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcore.base.transformers_internals import loaded_types
from qcore.formats.budget import Budget
from qcore.layers.select import Target, select
from qcore.layers.text_part import output_head
from qcore.quantization.narrow import DTYPES
from qcore.recipes import ENGINES, Engine, Float, Recipe
from qcore.recipes.engines import variant

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Bytes: `total` of everything, `quantized` of the quantized weights. `weights` is their number,
    `largest` the fp32 bytes of the largest one, `packed` the bytes that native kernels may repack (not fused
    experts)."""

    total: int
    quantized: int
    weights: int
    largest: int
    packed: int

    @property
    def bits_per_weight(self) -> float | None:
        """Return the bits per quantized weight; None if there are none."""
        return 8 * self.quantized / self.weights if self.weights else None


def stored(model: PreTrainedModel, recipe: Recipe) -> Stored:
    """Count all tensors of `model` (the meta model is enough) under `recipe`. Raise `InputError` for a skip
    pattern without a match."""
    items = tensors(model, recipe)
    changed = [item for item in items if item.changed]
    kept = model.state_dict()
    buffers = sum(buffer.nbytes for name, buffer in model.named_buffers() if name in kept)
    return Stored(
        total=sum(item.bytes_after for item in items) + buffers,
        quantized=sum(item.bytes_after for item in changed),
        weights=sum(item.weights for item in changed),
        largest=max((4 * item.weights for item in changed), default=0),
        packed=sum(item.bytes_after for item in changed if len(item.shape) == 2),
    )


@dataclass(frozen=True)
class Item:
    """A parameter as a ledger row says it, as far as that is known before: `bytes_after` is 0 where it shares
    another one's storage."""

    name: str
    shape: tuple[int, ...]
    bytes_after: int
    weights: int
    changed: bool


def tensors(model: PreTrainedModel, recipe: Recipe) -> list[Item]:
    """Return every parameter of `model` under `recipe`. A head that the recipe unties is counted under its
    own name."""
    head = output_head(model)
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    head_name = next((f"{name}.weight" for name, module in model.named_modules() if module is head), None)
    targets: dict[str, Target] = {}
    types: dict[str, torch.dtype] = {}
    if isinstance(recipe.weights, Float):
        types = loaded_types(model, DTYPES[recipe.weights.dtype])
    else:
        targets = {target.name: target for target in select(model, _without_head(recipe)).targets}
    with_head = isinstance(recipe.weights, Engine) and ENGINES[recipe.weights.backend].quantizes_head
    own_head = tied and (with_head or recipe.prepare == "rotation")
    items: list[Item] = []
    seen: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        count = parameter.numel()
        shares = parameter in seen and not own_head
        seen.setdefault(parameter, name)
        if with_head and name == head_name:  # this library quantizes the head too, in a copy of its own
            items.append(Item(name, tuple(parameter.shape), count, count, True))
        elif shares:
            items.append(Item(name, tuple(parameter.shape), 0, count, False))
        elif name in targets:
            items.append(
                Item(
                    name,
                    tuple(parameter.shape),
                    _target_bytes(model, targets[name], count, recipe),
                    count,
                    True,
                )
            )
        else:
            width = types.get(name, parameter.dtype).itemsize
            changed = name in types and width < 4
            items.append(Item(name, tuple(parameter.shape), width * count, count, changed))
    return items


def _without_head(recipe: Recipe) -> Recipe:
    if not isinstance(recipe.weights, Engine):
        return recipe
    return replace(recipe, modules=replace(recipe.modules, head="keep", embeddings="keep"))


def _target_bytes(model: PreTrainedModel, target, count: int, recipe: Recipe) -> int:
    if isinstance(target.format, Budget) and target.format.unit == "bpw":
        return round(count * target.format.amount / 8)
    if isinstance(target.format, Budget):  # an upper bound: the formats are chosen later
        target = replace(target, format=target.format.largest)
    if isinstance(target.format, Engine):
        return round(count * variant(target.format.backend, target.format.variant).bits / 8)
    matrices, rows, columns = target.shape(model)
    return matrices * target.format.for_columns(columns).nbytes(rows, columns)

"""The layout of a quantized model, to the byte, computed from the model's shapes and the recipe alone.

A `Unit` is made in one step: the parts of one quantized matrix (of one expert, for fused experts), or one
kept tensor. Units follow the order of the model and are divided into shards of about equal size. Within a
shard, tensors whose size is a multiple of 64 bytes come first, in the order of their computation, so they can
be written and hashed immediately and start at aligned addresses. The few others follow at the end, wide types
first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from qcore.base.tensor_file import Piece
from qcore.layers.inventory import inventory, kept_row
from qcore.layers.select import Target, select
from qcore.library.manifest import Matrix, stems
from qcore.recipes import Recipe
from qcore.recipes.ledger import Ledger

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVEN = 64  # bytes; see above
# bytes of unaligned tensors, which wait in memory for the end of the shard, after which it is closed
HELD = 64 << 20


@dataclass(frozen=True)
class Unit:
    """A `parameter` (or its matrix number `expert`, for fused experts) and its stored pieces. `target` is
    None for a kept tensor."""

    parameter: str
    expert: int | None
    target: Target | None
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all its pieces."""
        return sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True)
class Shard:
    """A file of the output: its units in order, and its pieces in file order."""

    file: str
    units: tuple[Unit, ...]

    @property
    def pieces(self) -> list[Piece]:
        """See the module's docstring."""
        every = [piece for unit in self.units for piece in unit.pieces]
        uneven = sorted(
            (piece for piece in every if piece.nbytes % EVEN), key=lambda piece: -piece.dtype.itemsize
        )
        return [piece for piece in every if piece.nbytes % EVEN == 0] + uneven

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(unit.nbytes for unit in self.units)


@dataclass(frozen=True)
class Layout:
    """The complete output. `tensors` is the manifest's description of the quantized matrices."""

    shards: tuple[Shard, ...]
    ledger: Ledger
    tensors: tuple[dict, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all shards' tensors."""
        return sum(shard.nbytes for shard in self.shards)


def plan(model: PreTrainedModel, recipe: Recipe, shard_bytes: int) -> Layout:
    """Lay out `model` (a meta model) under `recipe`, one of qcore's own data-free ones, in shards of about
    `shard_bytes`.

    Raise as quantizing in memory does: `NotAppliedError` if the recipe changes no tensor, `InputError` for a
    skip pattern without a match.
    """
    selection = select(model, recipe)
    targets = {target.name: target for target in selection.targets}
    rows, units, described, owner = {}, [], {}, {}
    for name, tensor, shared in inventory(model):
        row = kept_row(name, tensor, shared, selection.kept.get(name), intended=name not in selection.missed)
        target = targets.get(name)
        made = [] if target is None else _quantized_units(model, target)
        if target is not None:
            twin = shared if shared in described else None
            owner[name] = twin or name
            described[name] = made
            size = 0 if twin else sum(unit.nbytes for unit in made)
            reason = f"Shares the codes of {twin}." if twin else None
            row = replace(
                row, format=target.format.label, bytes_after=size, reason=reason, intended=True, shares=twin
            )
            units += [] if twin else made
        elif not shared:
            units.append(Unit(name, None, None, (Piece(name, tensor.dtype, tuple(tensor.shape)),)))
        rows[name] = row
    ledger = Ledger(recipe.name, tuple(rows.values())).check()
    tensors = [
        entry
        for target in selection.targets
        for entry in _describe(model, target, targets[owner[target.name]])
    ]
    return Layout(_cut(units, shard_bytes), ledger, tuple(tensors))


def _quantized_units(model: PreTrainedModel, target: Target) -> list[Unit]:
    count, rows, columns = target.shape(model)
    numbers = range(count) if target.fused else [None]
    parts = target.format.layout(rows, columns)
    return [
        Unit(
            target.name,
            number,
            target,
            tuple(
                Piece(f"{stem}.{part}", getattr(torch, dtype), shape)
                for part, (dtype, shape) in parts.items()
            ),
        )
        for number, stem in zip(numbers, stems(model, target), strict=True)
    ]


def _describe(model: PreTrainedModel, target: Target, owner: Target) -> list[dict]:
    _, rows, columns = target.shape(model)
    names = zip(stems(model, target), stems(model, owner), strict=True)
    return [Matrix(own, first, (rows, columns), target.format).to_dict() for own, first in names]


def _cut(units: list[Unit], shard_bytes: int) -> tuple[Shard, ...]:
    groups: list[list[Unit]] = [[]]
    size = held = 0
    for unit in units:
        if groups[-1] and (size + unit.nbytes > shard_bytes or held > HELD):
            groups.append([])
            size = held = 0
        groups[-1].append(unit)
        size += unit.nbytes
        held += sum(piece.nbytes for piece in unit.pieces if piece.nbytes % EVEN)
    if len(groups) == 1:
        return (Shard("model.safetensors", tuple(groups[0])),)
    return tuple(
        Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for i, group in enumerate(groups, 1)
    )

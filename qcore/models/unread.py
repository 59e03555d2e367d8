"""What of a checkpoint is not the text model: towers, which are loaded and kept, and stored tensors that the
model's class has no place for, which are not loaded.

A tensor without a place is an error if its name begins like that of a module of the model, because the model
would then compute something other than its weights say. Others are heads and encoders beside the model, such
as a head that predicts further tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from qcore.base.transformers_internals import StoredNames
from qcore.models.assembly import meta_model
from qcore.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def count_unread(checkpoint: Checkpoint) -> Checkpoint:
    """Return `checkpoint` with a description that counts its towers and the tensors that are not loaded.
    Raise `InputError` as `meta_model` does."""
    if checkpoint.is_quantized:
        return checkpoint
    model = meta_model(checkpoint)
    words = [*_towers(model), *_without_place(checkpoint, model)]
    return replace(checkpoint, description=" ".join([checkpoint.description, *words]))


def _towers(model: PreTrainedModel) -> Iterable[str]:
    from qcore.layers.text_part import text_part

    part = text_part(model)
    if part.towers:
        count = sum(each.numel() for name, each in model.named_parameters() if part.tower_of(name))
        are = "is" if len(part.towers) == 1 else "are"
        kept = f"{_listed(part.towers)} ({_weights(count)}) {are} kept"
        yield f"Only its text model is quantized: {kept}, unless a recipe has -towers8."


def _without_place(checkpoint: Checkpoint, model: PreTrainedModel) -> Iterable[str]:
    names = StoredNames(model)
    left = [name for name in checkpoint.tensors if names.place(name) is None]
    if left:
        count = sum(checkpoint.tensors[name].elements for name in left)
        others = f" and {len(left) - 1} more" if len(left) > 1 else ""
        yield (
            f"Not loaded, because {type(model).__name__} has no place for it: {left[0]}{others} "
            f"({_weights(count)})."
        )


def _listed(names: tuple[str, ...]) -> str:
    shown = list(names) if len(names) < 4 else [*names[:2], f"{len(names) - 2} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _weights(count: int) -> str:
    return f"{count / 1e6:,.1f} million weights" if count >= 1_000_000 else f"{count:,} weights"

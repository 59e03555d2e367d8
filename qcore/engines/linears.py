"""Replacement of linear layers, shared by the engines: the selection of layers, GPT-2's `Conv1D` as an
ordinary linear layer, and the ledger's rows.

An engine converts one `nn.Linear` at a time: progress can be shown, each original is freed before the next
layer is converted, and the modules that a recipe selects are the same for every library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qcore.base.errors import InputError, NotAppliedError, UnavailableError
from qcore.base.progress import Progress
from qcore.layers.inventory import inventory, kept_row
from qcore.layers.select import Target, select
from qcore.recipes import Recipe
from qcore.recipes.ledger import LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDING = "Kept: {library} quantizes linear layers only."
TIED = "Kept: {library} quantizes the output head's copy of this tied tensor; the embedding is unchanged."
EXPERTS = (
    "{library} quantizes linear layers only, and this model keeps its experts in one fused "
    "three-dimensional tensor. Use one of qcore's own recipes, or skip the experts explicitly."
)


@dataclass(frozen=True)
class Converted:
    """The `module` that replaces a linear layer, the tensors that it stores for the weight (`parts`), and the
    format's `label` in the ledger."""

    module: nn.Module
    parts: tuple[torch.Tensor, ...]
    label: str
    extra_bytes: int = 0  # scales that the library holds outside tensors

    @property
    def nbytes(self) -> int:
        """Stored bytes of the weight."""
        return sum(part.nbytes for part in self.parts) + self.extra_bytes


def replace_linears(
    model: PreTrainedModel,
    recipe: Recipe,
    progress: Progress,
    library: str,
    convert: Callable[[nn.Linear], Converted],
    notes: dict[str, str] | None = None,
) -> list[LedgerRow]:
    """Replace each linear layer selected by `recipe` with the result of `convert`, and return a ledger row
    per tensor of `model`.

    `library` is the library's name in messages; `notes` maps a kind of target, such as "head", to a note in
    the ledger row. Raise `InputError` for a choice of modules that the library does not support, and
    `NotAppliedError` for a layer that was not quantized.
    """
    _check_modules(recipe, library)
    selection = select(model, recipe)
    before = list(inventory(model))
    rows = {
        name: kept_row(name, tensor, shared, selection.kept.get(name), intended=name not in selection.missed)
        for name, tensor, shared in before
    }
    shared_names = {shared for _, _, shared in before if shared}
    del before  # references in this list would keep every original in memory
    linears = []
    for target in selection.targets:
        if target.kind in ("linear", "conv1d", "head"):
            linears.append(target)
        else:
            rows[target.name] = _left_out(
                rows[target.name], target, library, tied=target.name in shared_names
            )
    for done, target in enumerate(linears):
        progress(done, len(linears), target.name)
        converted = _replace(model, target, convert, library)
        row = replace(rows[target.name], format=converted.label, bytes_after=converted.nbytes)
        rows[target.name] = replace(row, reason=(notes or {}).get(target.kind), intended=True)
    progress(len(linears), len(linears), "")
    return list(rows.values())


def as_linear(module: nn.Module) -> nn.Linear:
    """Return `module` itself if it is an `nn.Linear`, otherwise the `nn.Linear` equivalent to a `Conv1D`,
    which stores its weight as (inputs, outputs)."""
    if isinstance(module, nn.Linear):
        return module
    if not isinstance(module, Conv1D):
        raise TypeError(f"{type(module).__name__} is not a linear layer")
    linear = nn.Linear(module.nx, module.nf, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
    linear.bias = module.bias
    return linear.train(module.training)


@contextmanager
def importing(library: str) -> Iterator[None]:
    """Raise `UnavailableError` with the reason if an import inside the context fails."""
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UnavailableError(
            f"{library} is installed but does not load here: {reason}. Reinstall it, or use another recipe."
        ) from error


def inner_tensors(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the plain tensors inside a tensor subclass, nested subclasses included."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return (tensor,)
    names, _ = tensor.__tensor_flatten__()
    return tuple(plain for name in names for plain in inner_tensors(getattr(tensor, name)))


def unchanged(library: str, what: str) -> NotAppliedError:
    """Return the error for a layer that `library` did not quantize."""
    return NotAppliedError(
        f"{library} returned a layer that is not quantized: {what}. "
        "This version may have changed its behavior."
    )


def _check_modules(recipe: Recipe, library: str) -> None:
    if recipe.modules.head == "int8" or recipe.modules.embeddings != "keep":
        raise InputError(
            f"{recipe.name} cannot store the {'head' if recipe.modules.head == 'int8' else 'embeddings'} as "
            f"requested: {library} quantizes linear layers in one format only. "
            "Set embeddings to keep, and the head to keep or same."
        )


def _left_out(row: LedgerRow, target: Target, library: str, tied: bool) -> LedgerRow:
    if target.fused:
        return replace(row, reason=EXPERTS.format(library=library), intended=False)
    return replace(row, reason=(TIED if tied else EMBEDDING).format(library=library))


def _replace(
    model: nn.Module, target: Target, convert: Callable[[nn.Linear], Converted], library: str
) -> Converted:
    old = model.get_submodule(target.module)
    if type(old.weight) is not nn.Parameter or not old.weight.is_floating_point():
        raise InputError(
            f"{target.name} is quantized already. Use the original checkpoint to quantize it another way."
        )
    weights = old.weight.numel()  # read now: some libraries empty the original layer
    try:
        converted = convert(as_linear(old))
    except NotAppliedError as error:
        raise NotAppliedError(f"{target.name}: {error}") from error
    codes = max(converted.parts, key=torch.Tensor.numel)
    if codes.dtype not in (torch.int8, torch.uint8) or codes.nbytes > weights:
        raise unchanged(library, f"{target.name} still holds floating-point weights")
    model.set_submodule(target.module, converted.module)
    return converted

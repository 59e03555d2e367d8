"""A model without weights that is filled one block at a time.

Its parameters are left out, its buffers (such as rotary frequencies) are real. The modules outside the
decoder's blocks (embeddings, last norm, head) are filled first. Weights stay mapped from the checkpoint's
files and are widened to float32 when a layer uses them, so a block needs memory only for its current layer.
The weights that a recipe targets are quantized when their block is filled.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from qcore.base.torch_internals import put_tensor
from qcore.base.transformers_internals import use_eager_experts
from qcore.layers.embedding import is_embedding, scale_of
from qcore.layers.experts import expert_layouts
from qcore.layers.linear import is_linear
from qcore.layers.modules import FusedWeight, QuantizedModule, StoredEmbedding, StoredLinear, Widen
from qcore.layers.select import Target, select
from qcore.layers.text_part import output_head
from qcore.models.assembly import empty_model
from qcore.models.config import to_transformers
from qcore.quantization.convert import install
from qcore.recipes import Recipe
from qcore.streaming.layout import Unit
from qcore.streaming.quantizing import choose
from qcore.streaming.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 8192  # rows of a 16-bit head per widening
_SMALL = 1 << 16  # a parameter of at most this many weights is widened as a whole


class Frame:
    """`model`: see the module docstring. With `recipe` None the weights stay as stored, computed in float32.
    Raise `InputError` as quantizing does."""

    def __init__(self, source: Source, recipe: Recipe | None):
        self.source = source
        self.model = _without_parameters(source)
        self._targets: dict[str, Target] = {}
        if recipe is not None and recipe.quantizes:
            self._targets = {target.name: target for target in select(self.model, recipe).targets}
        self._fused = expert_layouts(self.model)
        self._codes: dict[str, list] = {}  # tied weights, by their first name
        self._tied = _tied_names(self.model)
        self._shapes = {
            name: parameter.shape for name, parameter in self.model.named_parameters(remove_duplicate=False)
        }

    def fill(self, prefix: str, leave: str | None = None) -> None:
        """Fill all modules below `prefix` ("" is the whole model) with weights, except those below
        `leave`."""
        inside = f"{prefix}." if prefix else ""
        names = [
            name
            for name in self._shapes
            if name.startswith(inside) and not (leave and name.startswith(f"{leave}."))
        ]
        chosen = [name for name in names if name in self._targets]
        for name in names:
            if name not in self._targets:
                self._put(name)
        for name in chosen:
            install(self.model, self._targets[name], self._quantized(name))
        self.source.forget()

    def empty(self, block: nn.Module) -> nn.Module:
        """Return a copy of `block` without any parameters or buffers; its config is the model's own."""
        configs = {
            id(module.config): module.config for module in block.modules() if hasattr(module, "config")
        }
        tensors = [*block.parameters(), *block.buffers()]
        filled = [
            module for module in block.modules() if isinstance(module, QuantizedModule | _Experts)
        ]  # codes are not parameters
        return deepcopy(
            block,
            configs
            | {id(tensor): None for tensor in tensors}
            | {id(module): nn.Module() for module in filled},
        )

    def _quantized(self, name: str) -> list:
        first = self._tied.get(name, name)
        if first in self._codes:
            return self._codes[first]
        target = self._targets[name]
        numbers = range(target.shape(self.source.model)[0]) if target.fused else [None]
        weights = [choose(self.source, Unit(name, number, target, ())) for number in numbers]
        if name in self._tied:
            self._codes[first] = weights
        return weights

    def _put(self, name: str) -> None:
        owner_name, _, last = name.rpartition(".")
        module = self.model.get_submodule(owner_name)
        parameter = getattr(module, last, None)
        if not isinstance(parameter, nn.Parameter):
            return  # belongs to a module that was replaced, including its bias
        if name in self._fused:
            delattr(module, last)
            setattr(module, last, _Experts(self.source, name, tuple(parameter.shape)))
            use_eager_experts(module)
            return
        value = self.source.read(name)
        if value.dtype == torch.float32 or value.numel() <= _SMALL or not value.is_floating_point():
            setattr(module, last, nn.Parameter(value.to(parameter.dtype), requires_grad=False))
            return
        stored = nn.Parameter(value, requires_grad=False)
        parent_name, _, own = owner_name.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        if module is output_head(self.model) and is_linear(module):
            setattr(parent, own, _Head(stored, self._bias(owner_name, module)))
        elif is_linear(module):
            setattr(parent, own, StoredLinear(stored, self._bias(owner_name, module)))
        elif is_embedding(module):
            setattr(parent, own, StoredEmbedding(stored, module.padding_idx, scale_of(module)))
        else:
            setattr(module, last, stored)
            parametrize.register_parametrization(module, last, Widen(), unsafe=True)

    def _bias(self, owner_name: str, module: nn.Linear) -> torch.Tensor | None:
        return None if module.bias is None else self.source.read(f"{owner_name}.bias").float()


class _Experts(FusedWeight):
    """Fused experts whose weights are read on access."""

    def __init__(self, source: Source, name: str, shape: tuple[int, ...]):
        super().__init__()
        self._source, self._name, self.shape = source, name, cast(tuple[int, int, int], shape)

    def matrix(self, expert: int) -> torch.Tensor:
        """Return one expert's weight in float32."""
        return self._source.expert(self._name, expert).float()


class _Head(StoredLinear):
    """An output head stored in 16 bits, whose rows are widened a block at a time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., V) in float32."""
        flat = x.reshape(-1, x.shape[-1]).float()
        logits = torch.cat([flat @ rows.float().T for rows in self.weight.split(ROWS)], dim=1)
        logits = logits if self.bias is None else logits + self.bias
        return logits.view(*x.shape[:-1], -1)


def _without_parameters(source: Source) -> PreTrainedModel:
    """Return the model with parameters on the meta device and its buffers, the stored ones included."""
    model = empty_model(to_transformers(source.checkpoint.config))
    saved = source.model.state_dict()
    for name in [name for name, _ in model.named_buffers() if name in saved]:
        owner, _, last = name.rpartition(".")
        put_tensor(model.get_submodule(owner), last, source.read(name).clone())
    return model


def _tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Return {name: first name} of the parameters that have several."""
    families: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        families.setdefault(id(parameter), []).append(name)
    return {name: family[0] for family in families.values() if len(family) > 1 for name in family}

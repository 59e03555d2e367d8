"""Selection of the tensors that a recipe changes, with the reason why each other tensor is kept.

`kinds.py` tells the matrices of linear layers and experts from what is kept by rule. Embeddings and the
output head are changed only if the recipe says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.mixture import Mixture
from qcore.formats.uniform import Uniform
from qcore.layers.kinds import INNER, QUANTIZABLE, REASONS, UNKNOWN, Kinds
from qcore.layers.places import place_of
from qcore.layers.text_part import text_part
from qcore.recipes import Modules, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INT8 = Uniform(bits=8, group_size=None, symmetric=True)


@dataclass(frozen=True)
class Target:
    """A parameter to quantize: `module`'s attribute `parameter`; `kind` is "linear", "conv1d", "experts",
    "head" or "embedding".

    Its weight is one matrix (N outputs, K inputs), or one per fused expert. With `transposed`, the model
    stores (K, N); `matrices` and `put` convert. The argument `root` of the methods is the model, or its part
    called `prefix`.
    """

    module: str
    parameter: str
    kind: str
    format: Format
    method: str
    activations: str
    transposed: bool = False

    @property
    def name(self) -> str:
        """The parameter's full name."""
        return f"{self.module}.{self.parameter}"

    @property
    def fused(self) -> bool:
        """Whether the parameter holds the matrices of all experts."""
        return self.kind == "experts"

    def owner(self, root: nn.Module, prefix: str = "") -> nn.Module:
        """Return the module that holds the parameter."""
        return root.get_submodule(self.module.removeprefix(f"{prefix}.") if prefix else self.module)

    def weight(self, root: nn.Module, prefix: str = "") -> torch.Tensor:
        """Return the parameter as stored, without gradients."""
        return getattr(self.owner(root, prefix), self.parameter).detach()

    def shape(self, root: nn.Module) -> tuple[int, int, int]:
        """Return (matrices, outputs N, inputs K)."""
        *experts, rows, columns = getattr(self.owner(root), self.parameter).shape
        return (*(experts or [1]), *((columns, rows) if self.transposed else (rows, columns)))

    def matrices(self, root: nn.Module, prefix: str = "") -> list[torch.Tensor]:
        """Return the weight as matrices (N, K) that share the parameter's memory: one, or one per expert."""
        weight = self.weight(root, prefix)
        weight = weight.transpose(-1, -2) if self.transposed else weight
        return list(weight.unbind(0)) if self.fused else [weight]

    def put(self, root: nn.Module, matrices: Sequence[torch.Tensor], prefix: str = "") -> None:
        """Replace the parameter by `matrices` (N, K), converted to the model's layout."""
        value = torch.stack(tuple(matrices)) if self.fused else matrices[0]
        value = value.transpose(-1, -2) if self.transposed else value
        new = nn.Parameter(value.contiguous(), requires_grad=False)
        setattr(self.owner(root, prefix), self.parameter, new)


@dataclass(frozen=True)
class Selection:
    """`targets` in the model's order, those in towers last; `kept` maps every other parameter's name to the
    reason; `missed` are the kept parameters that the recipe should have covered and cannot."""

    targets: tuple[Target, ...]
    kept: dict[str, str]
    missed: frozenset[str]


def matches(name: str, pattern: str) -> bool:
    """Return whether `pattern` matches consecutive whole segments of the dotted `name`; `*` and `?` match
    characters within a segment.

    >>> matches("model.layers.1.mlp", "layers.1"), matches("model.layers.10.mlp", "layers.1")
    (True, False)
    """
    segments, wanted = name.split("."), pattern.split(".")
    runs = (segments[i : i + len(wanted)] for i in range(len(segments) - len(wanted) + 1))
    return any(all(map(fnmatchcase, run, wanted)) for run in runs)


def select(model: PreTrainedModel, recipe: Recipe, *, stored: Collection[str] = ()) -> Selection:
    """Return the selection for all parameters of `model`. Linear layers whose names are in `stored` are
    targets whatever the rules: a saved model holds their codes. Raise `InputError` if a skip pattern matches
    no module that could be quantized."""
    targets: list[Target] = []
    in_towers: list[Target] = []
    kept: dict[str, str] = {}
    missed: set[str] = set()
    used: set[str] = set()
    kinds: set[str] = set()
    unlike: set[str] = set()  # matrices of modules that are no linear layer to qcore
    text = text_part(model)
    embedding, tied = text.embedding, text.is_tied
    rules = Kinds(model)
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{parameter_name}"
            if tower := text.tower_of(name):
                patterns = {pattern for pattern in recipe.modules.skip if matches(module_name, pattern)}
                used |= patterns
                is_linear = rules.of(module_name, module, parameter_name, parameter) == "linear"
                if is_linear and recipe.modules.towers == "int8" and not patterns:
                    made = Target(module_name, parameter_name, "linear", INT8, "rtn", recipe.activations)
                    in_towers.append(made)
                else:
                    kept[name] = f"Kept: {tower} is not part of the text model."
                continue
            kind = rules.of(module_name, module, parameter_name, parameter)
            kind = "linear" if module_name in stored and kind in ("gate", "router") else kind
            kinds.add(kind)
            choice = _choice(kind, recipe.modules, tied)
            pattern = next(
                (pattern for pattern in recipe.modules.skip if matches(module_name, pattern)), None
            )
            used |= {pattern} if pattern and kind in QUANTIZABLE else set()
            if kind not in QUANTIZABLE:
                kept[name] = REASONS[kind]
                missed |= {name} if kind == UNKNOWN else set()
                other = kind in ("other", "other product") and not isinstance(module, nn.Embedding)
                unlike |= {name} if other and parameter.ndim == 2 else set()
            elif kind == "embedding" and isinstance(recipe.weights, Mixture) and module is not embedding:
                kept[name] = "Position embeddings are kept: they are small, and llama.cpp keeps them, too."
            elif choice == "keep":
                kept[name] = f"The {kind} is kept unless the recipe says otherwise."
            elif not parameter.numel():
                kept[name] = "It has no inputs or no outputs, so it holds no weights."
            elif pattern:
                kept[name] = f"Skipped by the pattern {pattern!r}."
            else:
                transposed = kind == "conv1d" or rules.layouts.get(name, False)
                columns = parameter.shape[-2 if transposed else -1]
                weights, method = (INT8, "rtn") if choice == "int8" else (recipe.weights, recipe.method)
                if isinstance(weights, Mixture):
                    place = place_of(model, module_name, parameter_name, kind, tied)
                    weights = weights.format(place, columns)
                elif isinstance(weights, Format):
                    weights = weights.for_columns(columns)
                # A budget takes the place of a format until the formats are chosen.
                format, activations = cast(Format, weights), recipe.activations
                targets.append(
                    Target(module_name, parameter_name, kind, format, method, activations, transposed)
                )
    for pattern in recipe.modules.skip:
        if pattern not in used:
            raise InputError(
                f"The skip pattern {pattern!r} matches no module of this model. Names look like "
                f"{next((target.module for target in targets), 'model.layers.0.mlp.down_proj')!r}."
            )
    if recipe.modules.towers != "keep" and not in_towers:
        raise InputError(
            f"{recipe.name} has no towers with linear layers to quantize here. Leave out -towers8."
        )
    if kinds.isdisjoint(INNER):  # a recipe that reaches nothing but the head has not been applied
        missed |= unlike
    return Selection((*targets, *in_towers), kept, frozenset(missed))


def _choice(kind: str, modules: Modules, tied: bool) -> str:
    if kind == "head" or (kind == "embedding" and tied):
        return modules.head
    return modules.embeddings if kind == "embedding" else "same"

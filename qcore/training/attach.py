"""Exchange the quantized layers of a model for trainable ones, and back.

The output head and a quantized embedding are not trained: they may share their codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.modules import QuantExperts, QuantizedModule, QuantLinear
from qcore.layers.select import select
from qcore.layers.text_part import output_head
from qcore.recipes import parse
from qcore.training.fake import Full, Light

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FakeLinear(nn.Module):
    """y = x · ŵᵀ + bias."""

    def __init__(self, fake: Light | Full, bias: torch.Tensor | None, activations: str):
        super().__init__()
        self.fake, self.activations = fake, activations
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        return nn.functional.linear(x, self.fake.weight(), self.bias)


class FakeExperts(nn.Module):
    """Fused experts; indexing returns one expert's ŵ, stored as in the model."""

    def __init__(self, fakes: list[Light | Full], transposed: bool, activations: str):
        super().__init__()
        self.fakes, self.transposed, self.activations = nn.ModuleList(fakes), transposed, activations

    def __getitem__(self, expert: int | torch.Tensor) -> torch.Tensor:
        weight = cast(Light | Full, self.fakes[int(expert)]).weight()
        return weight.T if self.transposed else weight


class FakeHead(nn.Module):
    """A quantized output head. It is not trained, because it may share its codes with the embedding."""

    weight: torch.Tensor

    def __init__(self, layer: QuantLinear):
        super().__init__()
        self.layer = layer
        self.register_buffer("weight", layer.weight, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        return nn.functional.linear(x, self.weight, self.layer.bias)


@dataclass(frozen=True)
class TrainableSet:
    """ "light" (scales and norms) or "full" (also the weights, with fixed scales unless `learn_scales`)."""

    name: str = "light"
    learn_scales: bool = False

    def __post_init__(self):
        if self.name not in ("light", "full"):
            raise InputError(f"The form of training is {self.name!r}, but it must be light or full.")
        if self.learn_scales and self.name == "light":
            raise InputError(
                "The light form trains scales anyway; learned scales are an option of the full form."
            )


def attach(model: PreTrainedModel, form: TrainableSet, unquantized: PreTrainedModel | None = None) -> None:
    """Replace the quantized layers of `model` by trainable ones. `unquantized`: the model before
    quantization, with the same names; in the full form, weights begin shifted towards its weights.

    Raise `InputError` if there is nothing to train: no quantized layers, or (light) formats without scales.
    """
    model.requires_grad_(False)
    head, count = output_head(model), 0
    targets = (
        {}
        if unquantized is None
        else {each.name: each for each in select(unquantized, parse("int8")).targets}
    )

    def before(name: str) -> list[torch.Tensor] | None:
        return None if unquantized is None else targets[name].matrices(unquantized)

    new: nn.Module
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            if module is head:
                new = FakeHead(module)
            else:
                (fake,) = _fakes(name, [module.quantized], form, before(f"{name}.weight"))
                new = FakeLinear(fake, module.bias, module.activations)
                count += 1
        elif isinstance(module, QuantExperts):
            tensors = [cast(QuantizedModule, expert).quantized for expert in module.experts]
            fakes = _fakes(name, tensors, form, before(name))
            new = FakeExperts(fakes, module.transposed, module.activations)
            count += 1
        else:
            continue
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    if not count:
        raise InputError(
            "This model has no quantized layers to train. Apply one of qcore's own "
            "recipes first, such as int3-g64."
        )
    for norm in norms(model):
        for parameter in norm.parameters(recurse=False):
            parameter.requires_grad_(True)


def detach(model: PreTrainedModel) -> None:
    """Replace the trainable layers by ordinary quantized ones."""
    from qcore.quantization import convert

    new: nn.Module
    for name, module in list(model.named_modules()):
        if isinstance(module, FakeLinear):
            new = QuantLinear(
                module.fake.result(), None if module.bias is None else module.bias.data, module.activations
            )
        elif isinstance(module, FakeExperts):
            results = [cast(Light | Full, fake).result() for fake in module.fakes]
            new = QuantExperts(results, module.transposed, module.activations)
        elif isinstance(module, FakeHead):
            new = module.layer
        else:
            continue
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    model.requires_grad_(False).eval()
    convert.run_whole_steps(model)


def norms(model: nn.Module) -> list[nn.Module]:
    """Return the normalization modules, whose weights are trained."""
    return [
        module
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        and isinstance(getattr(module, "weight", None), nn.Parameter)
    ]


def groups(model: nn.Module, rate: float) -> list[dict]:
    """Return the trained parameters with their learning rates, for an optimizer whose steps are about as
    large as the rate (such as Adam).

    `rate` is relative: to 1 for a gain, to the mean size of a norm's weights, and to a grid step for a latent
    weight.
    """
    found = []
    for module in model.modules():
        if isinstance(module, Light) or (isinstance(module, Full) and module.gain is not None):
            found.append({"params": [module.gain], "lr": rate})
        if isinstance(module, Full):
            found.append({"params": [module.latent], "lr": rate * float(module.scale.abs().mean())})
    for norm in norms(model):
        found.append(
            {
                "params": list(norm.parameters(recurse=False)),
                "lr": rate * float(cast(nn.Parameter, norm.weight).detach().abs().mean()),
            }
        )
    return found


def _fakes(
    name: str, tensors: list[QuantizedTensor], form: TrainableSet, before: list[torch.Tensor] | None
) -> list[Light | Full]:
    """Return the trainable parts for `tensors`; `before` are the matrices (N, K) of the unquantized model."""
    if form.name == "full":
        weights: Sequence[torch.Tensor | None] = before or [None] * len(tensors)
        return [
            Full(tensor, weight, form.learn_scales) for tensor, weight in zip(tensors, weights, strict=True)
        ]
    if tensors[0].scales() is None:
        raise InputError(
            f"{name} is stored as {tensors[0].format.label}, a table for each channel without "
            "scales, so the light form has nothing to train "
            "there. Take the full form, or a recipe with groups such as kmeans4-g64."
        )
    return [Light(tensor) for tensor in tensors]

"""The text model inside a model: the one place that is asked for it.

A wrapper (`Mistral3ForConditionalGeneration`, …) holds a stack of decoder layers, an output head, and towers:
vision and audio encoders and the projectors that map their output to the width of the text model. qcore loads
the wrapper as it is and quantizes, calibrates and runs its text part. Any other model is all text.

The stack is the innermost module around the embedding that holds a list of layers. A module is part of a
tower if it is

    outside       neither the stack, the head or the embedding, nor around one of them, or
    encoder       a part of the stack that holds a model with another config than the text's, and not the
                  embedding
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class TextPart:
    """The text part of a model.

    stack      the decoder's layers with embedding and last norm, called `name` in the model
    head       the output head; None if there is none
    towers     the names of the modules and parameters that are not text, the outermost of each tower
    """

    name: str
    stack: nn.Module
    head: Any
    embedding: Any
    config: PreTrainedConfig
    towers: tuple[str, ...]

    def tower_of(self, name: str) -> str | None:
        """Return the tower that holds the parameter or module called `name`; None if it belongs to the text
        model."""
        return next((tower for tower in self.towers if name == tower or name.startswith(f"{tower}.")), None)

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.head is not None and self.head.weight is self.embedding.weight


def text_part(model: PreTrainedModel) -> TextPart:
    """Return the text part of `model`, which may be on the meta device, or quantized."""
    config, embedding, head = model.config.get_text_config(), model.get_input_embeddings(), output_head(model)
    name, stack = text_stack(model)
    towers: list[str] = []
    if config is not model.config:
        towers += _outside(model, {id(part) for part in (stack, head, embedding)})
    towers += _encoders(stack, config, embedding, f"{name}." if name else "")
    return TextPart(name, stack, head, embedding, config, tuple(towers))


def text_stack(model: PreTrainedModel) -> tuple[str, Any]:
    """Return name and module of the stack of decoder layers; `model` itself, named "", if it has no list of
    layers."""
    for name, module in _around(model, model.get_input_embeddings()):
        if any(isinstance(child, nn.ModuleList) for child in module.children()):
            return name, module
    return "", model


def computing_type(model: PreTrainedModel) -> torch.dtype:
    """Return the type that the text model of `model` computes in. Towers may have another."""
    own = (each for each in text_stack(model)[1].parameters() if each.is_floating_point())
    return next((each.dtype for each in own), model.dtype)


def output_head(model: PreTrainedModel) -> Any:
    """Return the output head, also one that belongs to a causal language model inside `model`; None if there
    is none."""
    if (head := model.get_output_embeddings()) is not None:
        return head
    return None if (inner := causal_model(model)) is None else inner.get_output_embeddings()


def causal_model(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return the whole causal language model inside a wrapper. None if there is none, because the head is the
    wrapper's own, or because `model` is not a wrapper."""
    for name, module in _around(model, model.get_input_embeddings()):
        own: Any = getattr(module, "get_output_embeddings", None)
        if name and own is not None and own() is not None:
            return cast("PreTrainedModel", module)
    return None


def _around(model: nn.Module, part: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return name and module of all modules of `model` that hold `part`, the innermost first, `model`
    last."""
    path = next((name for name, module in model.named_modules() if module is part), "").split(".")
    names = [".".join(path[:count]) for count in range(len(path) - 1, -1, -1)]
    return [(name, model.get_submodule(name)) for name in names]


def _outside(module: nn.Module, text: set[int], prefix: str = "") -> Iterator[str]:
    """Yield the names of the modules and parameters of `module` that neither are, nor hold, nor lie inside
    one of the modules whose ids are `text`."""
    for name, _ in module.named_parameters(recurse=False):
        yield f"{prefix}{name}"
    for name, child in module.named_children():
        if id(child) in text:
            continue
        if any(id(each) in text for each in child.modules()):
            yield from _outside(child, text, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _encoders(stack: nn.Module, config: PreTrainedConfig, embedding: Any, prefix: str) -> Iterator[str]:
    """Yield the names of the parts of `stack` that hold a model of another modality, which has a config of
    its own, and not the `embedding`."""
    from transformers import PreTrainedModel

    for name, child in stack.named_children():
        if any(each is embedding for each in child.modules()):  # such as GIT's whole model
            yield from _encoders(child, config, embedding, f"{prefix}{name}.")
            continue
        models = (each for each in child.modules() if isinstance(each, PreTrainedModel))
        if any(type(each.config) is not type(config) for each in models):
            yield f"{prefix}{name}"

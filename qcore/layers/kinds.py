"""The kind of each parameter: matrices that a recipe may change, and others that it keeps, with the reason.

Matrices are the weights of `nn.Linear` and its equivalents (`linear.py`), GPT-2's `Conv1D` (stored
transposed), fused experts (`experts.py`), embeddings and the output head. Everything else is kept by rule: it
is small, and an error in it spreads. Routers decide which expert runs; gates and decays multiply the state of
a recurrence, where errors accumulate over tokens; a depthwise convolution has a few weights per channel. The
rules ask for properties of modules, not for names of architectures.

An expert parameter in an unknown layout is a fault. So is a three-dimensional parameter of a class of modules
that holds more than `SMALL` of the model's weights.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qcore.layers.embedding import is_embedding
from qcore.layers.experts import expert_layouts
from qcore.layers.linear import is_linear
from qcore.layers.text_part import output_head

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

INNER = ("linear", "conv1d", "experts")
QUANTIZABLE = (*INNER, "head", "embedding")
UNKNOWN = "unknown"
SMALL = 0.02  # share of the model's weights
REASONS = {
    "small": "Norms and biases are kept: they are a tiny share of the bytes.",
    "router": "Routers are kept: they are small, and an error would send tokens to other experts.",
    "gate": "Gates with one or two outputs per head are kept: they are small, and scale a whole head.",
    "depthwise": "Depthwise convolutions are kept: they are small, with a few weights per channel.",
    "convolution": "Convolutions are kept: they are not linear layers.",
    "state": "Parameters of a recurrence are kept: they are small, and errors add up over tokens.",
    "other": "Kept: it is not the weight of a linear layer.",
    "other product": "Kept: its module computes something other than a linear layer.",
    UNKNOWN: "Kept: it is large, but its layout is unknown.",
}
_ROUTERS = ("gate", "router")
_DECAYS = ("A_log", "time_decay", "recurrent_param")  # what multiplies the state at each token
_STATE = (*_DECAYS, "D", "dt_bias", "time_first")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Kinds:
    """The kinds of the parameters of `model`. `layouts` maps the fused expert parameters to their layout."""

    def __init__(self, model: PreTrainedModel):
        self.layouts = expert_layouts(model)
        self._head = output_head(model)
        self._members: dict[str, nn.Module] = dict(model.named_modules())
        self._heads = _heads(model.config.get_text_config())
        weights: Counter[type] = Counter()
        for module in self._members.values():
            weights[type(module)] += sum(each.numel() for each in module.parameters(recurse=False))
        self._shares = {kind: count / max(1, weights.total()) for kind, count in weights.items()}

    def of(self, module_name: str, module: nn.Module, name: str, parameter: torch.Tensor) -> str:
        """Return the kind of the own parameter `name` of `module`: one of `QUANTIZABLE` or of `REASONS`."""
        if parameter.ndim < 2 or name.endswith("bias"):
            return "small"
        if name in _STATE:
            return "state"
        if isinstance(module, _CONVOLUTIONS):
            return "depthwise" if module.groups == module.in_channels > 1 else "convolution"
        *_, above, last = ("", *module_name.split("."))
        if "Router" in type(module).__name__ or last in _ROUTERS or above == "router":
            return "router"
        if parameter.ndim > 2:
            return self._of_stacked(module_name, module, name, parameter)
        if name != "weight":
            return UNKNOWN if "Expert" in type(module).__name__ else "other"
        if isinstance(module, nn.Linear) and not is_linear(module):
            return "other product"
        if module is self._head:
            return "head"
        if is_linear(module):
            return "gate" if self._is_gate(module_name, last, parameter.shape[0]) else "linear"
        if is_embedding(module):
            return "embedding"
        return "conv1d" if type(module) is Conv1D else "other"

    def _of_stacked(self, module_name: str, module: nn.Module, name: str, parameter: torch.Tensor) -> str:
        if f"{module_name}.{name}" in self.layouts:
            return "experts"
        if sum(size > 1 for size in parameter.shape) < 2:
            return "small"
        if _is_recurrence(module):
            return "state"
        return "other" if self._shares[type(module)] < SMALL else UNKNOWN

    def _is_gate(self, module_name: str, last: str, outputs: int) -> bool:
        """Return whether a linear layer computes one or two numbers per head, or a single one."""
        if outputs == 1 or ("gate" in last and outputs <= self._heads):
            return True
        parent = self._members.get(module_name.rpartition(".")[0])
        heads = None if parent is None else _recurrent_heads(parent)
        return heads is not None and outputs in (heads, 2 * heads)


def _heads(config: PreTrainedConfig) -> int:
    """Return the largest number of heads in `config`; 0 if it has none."""
    names = ("num_attention_heads", "num_heads", "n_head", "num_key_value_heads")
    held = config.to_dict()  # an attribute that differs per layer cannot be read from the config itself
    return max((count for name in names if isinstance(count := held.get(name), int)), default=0)


def _is_recurrence(module: nn.Module) -> bool:
    """Return whether `module` itself holds the parameters of a recurrence."""
    return any(getattr(module, name, None) is not None for name in _DECAYS)


def _recurrent_heads(module: nn.Module) -> int | None:
    """Return the number of heads of a recurrence with one decay per head, in `module` or in a child; else
    None."""
    for holder in (module, *module.children()):
        decay = getattr(holder, "A_log", None)
        if isinstance(decay, torch.Tensor) and decay.numel() == max(decay.shape):
            return decay.numel()
    return None

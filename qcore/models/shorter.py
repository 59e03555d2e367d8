"""A config whose text model has some of its layers only."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_DEPTHS = ("num_hidden_layers", "n_layer")
_DENSE = "first_k_dense_replace"  # the number of layers before those with experts
_OVERRIDES = "per_layer_config"  # settings by the number of the layer


def with_layers(config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """Return a copy of `config` whose text model has the layers `kept`, in this order. Settings with an entry
    per layer keep the entries of these layers."""
    text: Any = config.get_text_config()
    total = text.num_hidden_layers
    changed = deepcopy(text.to_dict())
    for name, value in changed.items():
        if name in _DEPTHS:
            changed[name] = len(kept)
        elif name == _DENSE and value:
            changed[name] = sum(layer < value for layer in kept)
        elif name == _OVERRIDES and value:
            own = {int(number): entry for number, entry in value.items()}
            changed[name] = {str(place): own[i] for place, i in enumerate(kept) if i in own}
        elif isinstance(value, list) and len(value) == total:  # such as its kind of attention
            changed[name] = [value[layer] for layer in kept]
    short = type(text).from_dict(changed)
    if text is config:
        return short
    whole = deepcopy(config)
    setattr(whole, next(name for name in config.sub_configs if getattr(config, name) is text), short)
    return whole

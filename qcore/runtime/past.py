"""How a model carries what it has read from one call to the next.

    argument   the name by which forward takes it and its output returns it: "cache", or "state" (RWKV). None:
               nothing is carried, so every call reads the whole text (RecurrentGemma keeps its state in its
               modules, where two texts would mix)
    cache      the class of cache that the model makes for itself
    step       the most tokens that a call may add to a text that was begun; None: any number

Models of attention layers alone carry keys and values, and any number of tokens; old classes among them are
tried, because ProphetNet adds one token per call, and CPM-Ant wants the whole text in each. Others are tried
with a few tokens. The first generation of Mamba reads its state only in calls of one token: a longer call
gives the same logits whatever the state.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from qcore.base.transformers_internals import cache_layers, is_old_style, is_stateful
from qcore.formats.kv import PLAIN
from qcore.layers.text_part import text_stack
from qcore.runtime.calls import device_of


@dataclass(frozen=True)
class Past:
    """See the module docstring."""

    argument: str | None
    cache: type = DynamicCache
    step: int | None = None
    counts: bool = False  # positions must be passed: the model does not continue them by itself


_known: WeakKeyDictionary[nn.Module, Past] = WeakKeyDictionary()


def past_of(model: nn.Module) -> Past:
    """Return how `model` carries its past. A model with a recurrence runs a few tokens the first time."""
    if model not in _known:
        _known[model] = _find(model)
    return _known[model]


def held_bytes(past: object) -> int:
    """Return the bytes of keys, values and states in a cache, one of its layers, or a list of tensors."""
    if isinstance(past, torch.Tensor):
        return past.nbytes if past.is_floating_point() else 0
    if isinstance(past, dict):
        return sum(map(held_bytes, past.values()))
    if isinstance(past, list | tuple):
        return sum(map(held_bytes, past))
    if isinstance(found := getattr(past, "nbytes", None), int):
        return found
    is_holder = hasattr(past, "__dict__") and not isinstance(past, type | PreTrainedConfig)
    return held_bytes(vars(past)) if is_holder else 0


def _find(model: nn.Module) -> Past:
    takes = inspect.signature(model.forward).parameters
    argument = next((name for name in ("cache", "state") if name in takes), None)
    config = getattr(model, "config", None)
    if argument is None or config is None or not hasattr(config, "get_text_config"):
        return Past(argument)
    kinds = set(cache_layers(config.get_text_config())[0])
    if argument == "cache" and not is_stateful(model) and kinds <= {*PLAIN, "dummy"}:
        return _tried(model, argument) if is_old_style(text_stack(cast(Any, model))[1]) else Past(argument)
    counts = "position_ids" in takes
    carried = _after(model, argument, 4, counts)
    if carried is None:
        return Past(None)
    step = 1 if _state_is_unread(model, carried, counts) else None
    return Past(argument, type(carried), step, counts)


@torch.no_grad()
def _tried(model: nn.Module, argument: str) -> Past:
    """Return how `model` takes more tokens after its first: any number, one at a time, or only with all
    others."""
    try:
        _after(model, argument, 4, False)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # it needs other inputs than tokens
        return Past(argument)
    for tokens, step in ((2, None), (1, 1)):
        ids, carried = torch.arange(tokens, device=device_of(model))[None], _after(model, argument, 4, False)
        try:
            model(input_ids=ids, use_cache=True, **{argument: carried})
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # whatever the model's code raises
            continue
        return Past(argument, step=step)
    return Past(None)


@torch.no_grad()
def _after(model: nn.Module, argument: str, tokens: int, counts: bool) -> Any:
    """Return what `model` carries after `tokens` tokens."""
    ids = torch.arange(tokens, device=device_of(model))[None]
    options = {"position_ids": ids} if counts else {}
    return getattr(model(input_ids=ids, use_cache=True, **options), argument, None)


@torch.no_grad()
def _state_is_unread(model: nn.Module, cache: Any, counts: bool) -> bool:
    """Return whether two more tokens give the same logits whatever the recurrent state in `cache`."""
    layers: Any = getattr(cache, "layers", ())
    held = [state for layer in layers for state in getattr(layer, "recurrent_states", {}).values()]
    if not isinstance(cache, Cache) or all(state is None for state in held):
        return False
    ids = torch.arange(2, device=device_of(model))[None]
    options: dict[str, Any] = {"position_ids": ids + 4} if counts else {}
    other: Any = deepcopy(cache)
    for layer in other.layers:
        for key, state in getattr(layer, "recurrent_states", {}).items():
            if state is not None:
                layer.recurrent_states[key] = state + 1
    found = (model(input_ids=ids, cache=each, use_cache=True, **options).logits for each in (cache, other))
    return torch.equal(*found)

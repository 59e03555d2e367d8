"""Have a Hugging Face model take the native step by itself: `generate`, evaluation and measurement need not
know.

The forward of its stack of layers is replaced on the instance, and only there. Whenever a call asks for
something that the native step does not do (gradients, hooks on inner modules, attention maps, a mask that is
no left padding, another library's cache, another device), the modules run as they always did, on the same
cache.
"""

from typing import NamedTuple

import torch
from torch import nn

from qcore.runtime.native_cache import NativeCache, Scratch, native_layers
from qcore.runtime.weights import ARCHITECTURES, CHUNK, Weights, supports

_CAPTURE = "transformers.utils.output_capturing"  # hooks that only listen when they are asked to


def attach(model: nn.Module) -> None:
    """Let `model` use the native step where it can; models of other architectures are left as they are. May
    be called again."""
    if type(model).__name__ in ARCHITECTURES and not isinstance(
        model.model.__dict__.get("forward"), _Forward
    ):
        model.model.forward = _Forward(model)


def explain(model: nn.Module) -> str:
    """One line for people: whether a step of `model` is one native call, or why its modules run one by
    one."""
    reason = supports(model)
    if reason is None and not isinstance(model.model.__dict__.get("forward"), _Forward):
        reason = "The decoder is not attached to this model."
    return "whole step in one native call" if reason is None else f"module by module: {reason}"


class _Forward:
    """Stands in for `model.model.forward`."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._weights: Weights | None = None
        self._places: list[tuple[dict, str, nn.Module]] = []

    def __call__(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        **others,
    ):
        weights = self._current() if self._usable(input_ids, inputs_embeds, others) else None
        if weights is not None:
            keep = self._model.config.use_cache if use_cache is None else use_cache
            starts = _padding(attention_mask, position_ids, input_ids, cache)
            if starts is not False and cache is None and not keep:
                return self._run_once(weights, input_ids, starts)
            held = self._cache(cache, input_ids) if starts is not False else None
            if held is not None:
                return _run(weights, input_ids, starts, held, keep)
        stack = self._model.model
        return type(stack).forward(
            stack,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **others,
        )

    def __getstate__(self):
        return {"_model": self._model, "_weights": None, "_places": []}  # addresses mean nothing in a copy

    def _usable(self, ids, embeds, others: dict) -> bool:
        if (
            type(ids) is not torch.Tensor
            or embeds is not None
            or ids.device.type != "cpu"
            or ids.ndim != 2
            or not ids.numel()
        ):
            return False
        config = self._model.config
        if (
            any(value not in (None, False) for value in others.values())
            or config.output_attentions
            or config.output_hidden_states
        ):
            return False
        if torch.compiler.is_compiling() or self._model.training:
            return False
        return not (
            torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self._model.parameters())
        )

    def _current(self) -> Weights | None:
        """The native description, made anew if it is not true any more; None if there can be none."""
        weights = self._weights
        if weights is None or not weights.is_current() or _changed(self._places):
            stack = self._model.model
            weights = None if supports(self._model) or _watched(stack) else Weights(self._model)
            self._places = [
                _Place.of(module, name)
                for module in stack.modules()
                for name, child in module._modules.items()
                if child
            ]
            self._weights = weights
        return weights

    def _run_once(self, weights: Weights, ids: torch.Tensor, starts: torch.Tensor | None):
        """The stack's output where nothing is to be kept: whole sequences, as many at a time as fit into a
        call."""
        sequences, tokens = ids.shape
        scratch, hidden = None, torch.empty(sequences, tokens, weights.hidden)
        for rows in torch.arange(sequences).split(max(1, CHUNK // tokens)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            scratch = scratch or Scratch(self._model, len(rows), tokens)
            weights.run(
                _checked(weights, ids[part]),
                scratch,
                None if starts is None else starts[part],
                hidden=hidden[part],
            )
        return _output(hidden, None)

    def _cache(self, cache, ids: torch.Tensor) -> NativeCache | None:
        """The cache to use: the given one, if it is native or can become so; None if the modules have to run
        on it."""
        from transformers.cache_utils import DynamicCache

        if cache is None:
            cache = NativeCache(self._model)
        elif type(cache) is DynamicCache and cache.get_seq_length() == 0 and not cache.offloading:
            cache.__class__ = NativeCache  # the caller holds this very object and will pass it again
            cache.layers, cache.layer_class_to_replicate = native_layers(self._model), None
        elif not isinstance(cache, NativeCache) or len({layer.length for layer in cache.layers}) > 1:
            return None
        return cache if cache.sequences in (None, ids.shape[0]) else None


class _Place(NamedTuple):
    """Where a module stands in the tree, its own attributes, and how many hooks of which kinds it had when
    somebody looked."""

    siblings: dict
    name: str
    module: nn.Module
    attributes: dict
    hooks: dict
    pre_hooks: dict
    heard: int

    @classmethod
    def of(cls, parent: nn.Module, name: str) -> "_Place":
        module = parent._modules[name]
        hooks, pre_hooks = module._forward_hooks, module._forward_pre_hooks
        return cls(
            parent._modules, name, module, module.__dict__, hooks, pre_hooks, len(hooks) + len(pre_hooks)
        )


def _changed(places: list[_Place]) -> bool:
    """Whether the tree is another one by now, or listened to otherwise. Asked before every step, of hundreds
    of modules: so one loop."""
    for siblings, name, module, attributes, hooks, pre_hooks, heard in places:
        if (
            siblings.get(name) is not module
            or "forward" in attributes
            or len(hooks) + len(pre_hooks) != heard
        ):
            return True
    return False


def _run(weights: Weights, ids: torch.Tensor, starts: torch.Tensor | None, cache: NativeCache, keep: bool):
    """The stack's output for `ids` (sequences, tokens), in calls of at most CHUNK tokens, which `cache` holds
    afterwards."""
    sequences, tokens = ids.shape
    cache.reserve(sequences, cache.get_seq_length() + tokens)
    parts = []
    for part in _checked(weights, ids).split(max(1, CHUNK // sequences), dim=1):
        parts.append(torch.empty(*part.shape, weights.hidden))
        weights.run(part.contiguous(), cache, starts, hidden=parts[-1])
    return _output(parts[0] if len(parts) == 1 else torch.cat(parts, 1), cache if keep else None)


def _checked(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    if int(ids.min()) < 0 or int(ids.max()) >= weights.tokens:
        raise IndexError(f"a token lies outside the vocabulary of {weights.tokens}")
    return ids.to(torch.int64).contiguous()


def _output(hidden: torch.Tensor, cache: NativeCache | None):
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return BaseModelOutputWithPast(last_hidden_state=hidden, cache=cache)


def _watched(stack: nn.Module) -> bool:
    """Whether hooks or other people's forwards sit on modules inside `stack`. Those of transformers that
    collect outputs do not count."""
    for module in stack.modules():
        if module is stack:
            continue
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if (
            any(getattr(hook, "__module__", None) != _CAPTURE for hook in hooks)
            or "forward" in module.__dict__
        ):
            return True
    return False


def _padding(mask, position_ids, ids: torch.Tensor, cache) -> torch.Tensor | None | bool:
    """How many slots of each sequence are padding (sequences,); None for none, False if the mask or the
    positions say anything else."""
    past = 0 if cache is None else cache.get_seq_length()
    total = past + ids.shape[1]
    starts = None
    if mask is not None:
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.shape != (ids.shape[0], total):
            return False
        kept = mask != 0
        if not kept.all():
            starts = (~kept).sum(1)
            if not torch.equal(kept, torch.arange(total) >= starts[:, None]):
                return False
    if position_ids is not None:
        expected = torch.arange(past, total)[None] - (0 if starts is None else starts[:, None])
        if not ((position_ids == expected) | (expected < 0)).all():  # where padding stands does not matter
            return False
    return starts

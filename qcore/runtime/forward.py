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
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from qcore.layers.stand_in import stand_in
from qcore.runtime.native_cache import NativeCache, NativeLayers, Scratch
from qcore.runtime.snapshot import Snapshot, is_hooked
from qcore.runtime.weights import ARCHITECTURES, CHUNK, Weights, supports


def attach(model: nn.Module) -> None:
    """Let `model` use the native step where it can. Models of other architectures, and stacks whose forward
    another library has replaced, are left as they are. May be called again."""
    if type(model).__name__ in ARCHITECTURES and "forward" not in vars(model.model):
        stand_in(model.model, _Forward(model))


def detach(model: nn.Module) -> None:
    """Undo `attach`. Other models are left as they are."""
    if is_attached(model):
        del model.model.forward


def is_attached(model: nn.Module) -> bool:
    """Whether `model` takes the native step where it can."""
    return type(model).__name__ in ARCHITECTURES and isinstance(vars(model.model).get("forward"), _Forward)


def reason_against(model: nn.Module) -> str | None:
    """Return why a step of `model` is not one native call, in a sentence; None if it is one."""
    reason = supports(model)
    if reason is None and not is_attached(model):
        return "The decoder is not attached to this model."
    return reason


def explain(model: nn.Module) -> str:
    """Return one line for people: whether a step of `model` is one native call, or why its modules run one by
    one."""
    reason = reason_against(model)
    return "whole step in one native call" if reason is None else f"module by module: {reason}"


class _State(NamedTuple):
    """What one look at the model found: its native description, or None if its modules have to run."""

    snapshot: Snapshot
    weights: Weights | None


class _Forward:
    """Stands in for `model.model.forward`."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._state: _State | None = None

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
        output = self._native(
            input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, others
        )
        if output is not None:
            as_tuple = others.get("return_dict", self._model.config.return_dict) is False
            return output.to_tuple() if as_tuple else output
        if cache is not None or "past_key_values" not in others:  # the name of `cache` until 5.40
            others["cache"] = cache
        stack = self._model.model
        return type(stack).forward(
            stack,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **others,
        )

    def __getstate__(self):
        return {"_model": self._model, "_state": None}  # addresses mean nothing in a copy

    def _native(self, ids, mask, position_ids, cache, embeds, use_cache, others: dict):
        """The stack's output from native calls, or None if its modules have to run."""
        if not self._usable(ids, embeds, others) or (weights := self._weights()) is None:
            return None
        keep = self._model.config.use_cache if use_cache is None else use_cache
        starts = _padding(mask, position_ids, ids, cache)
        if starts is False:
            return None
        if cache is None and not keep:
            return self._run_once(weights, ids, starts)
        held = self._cache(cache, ids)
        return None if held is None else _run(weights, ids, starts, held, keep)

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
        if config.output_attentions or config.output_hidden_states:
            return False
        if any(
            value is not None and value is not False and name != "return_dict"
            for name, value in others.items()
        ):
            return False
        if torch.compiler.is_compiling() or self._model.training:
            return False
        return not (
            torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self._model.parameters())
        )

    def _weights(self) -> Weights | None:
        """The native description, read again if the model has changed; None if the modules have to run."""
        state = self._state
        if state is None or not state.snapshot.holds():
            inside = (module for module in self._model.model.modules() if module is not self._model.model)
            native = supports(self._model) is None and not is_hooked(*inside)
            weights = Weights(self._model) if native else None  # packs, so the snapshot comes after it
            state = self._state = _State(Snapshot(self._model), weights)
        return state.weights

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

    def _cache(self, cache, ids: torch.Tensor) -> Cache | None:
        """The cache to use, whose layers are native; None if the modules have to run on the given one.

        An empty `DynamicCache` gets native layers in place of its own, because the caller will pass this very
        object again: transformers leaves to the layers how keys and values are stored.
        """
        if cache is None:
            cache = NativeCache(self._model)
        elif type(cache) is DynamicCache and type(cache.layers) is not NativeLayers:
            if cache.get_seq_length() or cache.offloading:
                return None
            cache.layers, cache.layer_class_to_replicate = NativeLayers.of(self._model), None
        layers = getattr(cache, "layers", None)
        if type(layers) is not NativeLayers or not layers.are_level():
            return None
        return cache if layers.sequences in (None, ids.shape[0]) else None


def _run(weights: Weights, ids: torch.Tensor, starts: torch.Tensor | None, cache: Cache, keep: bool):
    """The stack's output for `ids` (sequences, tokens), in calls of at most CHUNK tokens, which `cache` holds
    afterwards."""
    sequences, tokens = ids.shape
    cache.layers.reserve(sequences, cache.layers.length + tokens)
    parts = []
    for part in _checked(weights, ids).split(max(1, CHUNK // sequences), dim=1):
        parts.append(torch.empty(*part.shape, weights.hidden))
        weights.run(part.contiguous(), cache.layers, starts, hidden=parts[-1])
    return _output(parts[0] if len(parts) == 1 else torch.cat(parts, 1), cache if keep else None)


def _checked(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    if int(ids.min()) < 0 or int(ids.max()) >= weights.tokens:
        raise IndexError(f"a token lies outside the vocabulary of {weights.tokens}")
    return ids.to(torch.int64).contiguous()


def _output(hidden: torch.Tensor, cache: Cache | None) -> BaseModelOutputWithPast:
    return BaseModelOutputWithPast(last_hidden_state=hidden, cache=cache)


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

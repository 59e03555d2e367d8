"""Make a Hugging Face model take the native step by itself, unnoticed by `generate`, evaluation and
measurement.

The forward of its stack of layers is replaced on the instance, and only there. If a call needs something that
the native step does not support (gradients, hooks on inner modules, attention maps, a mask other than left
padding, another library's cache, another device), the modules run as usual, on the same cache.
"""

import inspect
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, ModelOutput

from qcore.layers.stand_in import stand_in
from qcore.runtime.blocks import ends_of, family_of, stack_of
from qcore.runtime.masks import padding_of
from qcore.runtime.native_cache import NativeCache, NativeLayers, Scratch
from qcore.runtime.snapshot import Snapshot, is_hooked, is_replaced
from qcore.runtime.weights import Weights, read, supports


def attach(model: nn.Module) -> None:
    """Let `model` use the native step where possible. Models of other architectures, and stacks whose forward
    another library has replaced, are left unchanged. May be called again."""
    if family_of(model) is not None and "forward" not in vars(stack := stack_of(model)):
        stand_in(stack, _Forward(model))


def detach(model: nn.Module) -> None:
    """Undo `attach`. Other models are left unchanged."""
    if is_attached(model):
        del stack_of(model).forward


def is_attached(model: nn.Module) -> bool:
    """Return whether `model` takes the native step where possible."""
    return family_of(model) is not None and isinstance(vars(stack_of(model)).get("forward"), _Forward)


def reason_against(model: nn.Module) -> str | None:
    """Return one sentence on why a step of `model` is not one native call; None if it is."""
    reason = supports(model)
    if reason is None and not is_attached(model):
        return "The decoder is not attached to this model."
    return reason


def explain(model: nn.Module) -> str:
    """Describe for the user whether a step of `model` is one native call, or why its modules run."""
    reason = reason_against(model)
    return "whole step in one native call" if reason is None else f"module by module: {reason}"


def native_logits(
    model: nn.Module, ids: torch.Tensor, cache: Cache | None
) -> tuple[torch.Tensor, Cache] | None:
    """Append the tokens `ids` (1, T) to `cache` (None: a new one) by one native call, including the head.
    Return the logits (1, vocabulary) after the last token and the cache, or None if the model itself has to
    run."""
    return vars(stack_of(model))["forward"].logits(ids, cache) if is_attached(model) else None


class _State(NamedTuple):
    """The state read from a model: its native description, or None if its modules have to run. `is_plain`
    tells whether the model itself, its stack and its head have neither hooks nor replaced forwards, so that a
    native call may compute the logits."""

    snapshot: Snapshot
    weights: Weights | None
    is_plain: bool


class _Forward:
    """Stands in for the forward of a model's stack."""

    def __init__(self, model: Any):
        self._model, self._stack = model, stack_of(model)
        self._state: _State | None = None
        signature = inspect.signature(type(self._stack).forward)
        self._names = list(signature.parameters)[1:]
        returned = signature.return_annotation
        classes = [each for each in (returned, *get_args(returned)) if isinstance(each, type)]
        self._output = next(
            (each for each in classes if issubclass(each, ModelOutput)), BaseModelOutputWithPast
        )

    def __call__(self, *arguments, **options):
        options.update(zip(self._names, arguments, strict=False))
        output = self._native(**options)
        if output is not None:
            as_tuple = options.get("return_dict", self._stack.config.return_dict) is False
            return output.to_tuple() if as_tuple else output
        return type(self._stack).forward(self._stack, **options)

    def __getstate__(self):
        return {**vars(self), "_state": None}  # addresses mean nothing in a copy

    def _native(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        per_layer_inputs=None,
        logits_to_keep=None,  # callers select tokens themselves, too
        **others,
    ):
        """Return the stack's output from native calls, or None if its modules have to run."""
        if not self._usable(input_ids, inputs_embeds, others):
            return None
        if (weights := self._current().weights) is None:
            return None
        token_rows = None if per_layer_inputs is None else per_layer_inputs.float().flatten(2).contiguous()
        if (token_rows is not None) != (weights.has_token_rows and inputs_embeds is not None):
            return None
        ids, embeds = _inputs(weights, input_ids, inputs_embeds)
        keep = self._stack.config.use_cache if use_cache is None else use_cache
        past = 0 if cache is None else cache.get_seq_length()
        starts = padding_of(attention_mask, position_ids, ids.shape, past, weights.windows)
        if starts is False:
            return None
        # without position ids, the modules count slots, or derive them from the mask
        counts = position_ids is None and not weights.skips_padding
        options: dict[str, Any] = dict(
            starts=starts, counts_padding=counts, embeds=embeds, token_rows=token_rows
        )
        if weights.narrows and len(ids) == 1 and type(logits_to_keep) is int and logits_to_keep == 1:
            options["last"] = True
        if cache is None and not keep:
            scratch = Scratch(self._model, *ids.shape)
            return self._output(last_hidden_state=_run(weights, ids, scratch, **options))
        if (held := self._cache(cache, ids)) is None:
            return None
        hidden = _run(weights, ids, _layers(held), **options)
        return self._output(last_hidden_state=hidden, cache=held if keep else None)

    def _usable(self, ids, embeds, others: dict) -> bool:
        if (ids is None) == (embeds is None):
            return False
        given, dimensions = (ids, 2) if embeds is None else (embeds, 3)
        if type(given) is not torch.Tensor or given.device.type != "cpu" or given.ndim != dimensions:
            return False
        if not given.numel() or (embeds is not None and embeds.dtype != torch.float32):
            return False
        config = self._stack.config
        if config.output_attentions or config.output_hidden_states:
            return False
        if any(
            value is not None and value is not False and name != "return_dict"
            for name, value in others.items()
        ):
            return False
        if torch.compiler.is_compiling() or self._model.training:
            return False
        if not torch.is_grad_enabled():
            return True
        return not given.requires_grad and not any(each.requires_grad for each in self._model.parameters())

    def logits(self, ids: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, Cache] | None:
        """See `native_logits`."""
        if not self._usable(ids, None, {}) or len(ids) != 1:
            return None
        _, weights, is_plain = self._current()
        if weights is None or not is_plain or (held := self._cache(cache, ids)) is None:
            return None
        layers, logits = _layers(held), torch.empty(1, weights.vocabulary)
        layers.reserve(1, layers.length + ids.shape[1])
        weights.run(_checked(weights, ids), layers, logits=logits)
        return logits, held

    def _current(self) -> _State:
        """Return the state of the model, read again if the model has changed."""
        state = self._state
        if state is None or not state.snapshot.holds():
            model, stack = self._model, self._stack
            inside = [module for module in stack.modules() if module is not stack]
            changed = is_hooked(*inside) or is_replaced(*inside)
            weights = None if changed else read(model)  # packs, so the snapshot comes after it
            head = ends_of(model)[1]
            is_plain = not is_hooked(model, stack, head) and not is_replaced(model, head)
            is_plain &= stack.config is model.config  # a wrapper prepares masks and logits of its own
            state = self._state = _State(Snapshot(model), weights, is_plain)
        return state

    def _cache(self, cache, ids: torch.Tensor) -> Cache | None:
        """Return the cache to use, with native layers; None if the modules have to run on the given one.

        An empty `DynamicCache` gets native layers in place of its own, because the caller will pass this very
        object again: transformers leaves the storage of keys and values to the layers.
        """
        if cache is None:
            cache = NativeCache(self._model)
        elif type(cache) is DynamicCache and type(cache.layers) is not NativeLayers:
            if cache.get_seq_length() or cache.offloading:
                return None
            cache.layers = cast(list, NativeLayers.of(self._model))
            cache.layer_class_to_replicate = None
        layers: Any = getattr(cache, "layers", None)
        if type(layers) is not NativeLayers or not layers.are_level():
            return None
        return cache if layers.sequences in (None, ids.shape[0]) else None


def _layers(cache: Cache) -> NativeLayers:
    return cast(NativeLayers, cache.layers)


def _run(
    weights: Weights, ids: torch.Tensor, layers: NativeLayers | Scratch, last: bool = False, **options
) -> torch.Tensor:
    """Return the stack's output for `ids` (sequences, tokens), or for the last of them, and append keys and
    values to `layers`."""
    layers.reserve(ids.shape[0], layers.length + ids.shape[1])
    hidden = torch.empty(ids.shape[0], 1 if last else ids.shape[1], weights.hidden)
    weights.run(_checked(weights, ids), layers, hidden=hidden, **options)
    return hidden


def _inputs(
    weights: Weights, ids: torch.Tensor | None, embeds: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return token ids and, in place of their embeddings, what the first block gets."""
    if embeds is None:
        assert ids is not None
        return ids, None
    scaled = embeds if weights.input_scale == 1.0 else embeds * weights.input_scale
    return torch.zeros(embeds.shape[:2], dtype=torch.int64), scaled.contiguous()


def _checked(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    if int(ids.min()) < 0 or int(ids.max()) >= weights.tokens:
        raise IndexError(f"a token lies outside the vocabulary of {weights.tokens}")
    return ids.to(torch.int64).contiguous()

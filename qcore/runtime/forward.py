"""Make a Hugging Face model take the native step by itself, unnoticed by `generate`, evaluation and
measurement.

The forward of its stack of layers is replaced on the instance, and only there. If a call needs something that
the native step does not support (gradients, hooks on inner modules, attention maps, a mask other than left
padding, another library's cache, another device), the modules run as usual, on the same cache.
"""

import inspect
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, ModelOutput

from qcore.layers.stand_in import stand_in
from qcore.runtime.blocks import ends_of, family_of, stack_of
from qcore.runtime.native_cache import NativeCache, NativeLayers, Scratch
from qcore.runtime.snapshot import Snapshot, is_hooked, is_replaced
from qcore.runtime.weights import Weights, supports

_PROBED, _TOLERANCE = 8, 1e-3  # tokens and relative error of the comparison with a wrapper's modules


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
    if reason is None and _is_wrapper(model) and not vars(stack_of(model))["forward"].agrees():
        return f"{type(model).__name__} computes something other than the text model inside it."
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
        self._model = model
        self._state: _State | None = None
        signature = inspect.signature(type(stack_of(model)).forward)
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
            as_tuple = options.get("return_dict", self._model.config.return_dict) is False
            return output.to_tuple() if as_tuple else output
        stack = stack_of(self._model)
        return type(stack).forward(stack, **options)

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
        **others,
    ):
        """Return the stack's output from native calls, or None if its modules have to run."""
        ids = input_ids
        if not self._usable(ids, inputs_embeds, others) or (weights := self._current().weights) is None:
            return None
        keep = self._model.config.get_text_config().use_cache if use_cache is None else use_cache
        starts = _padding(attention_mask, position_ids, ids, cache)
        if starts is False:
            return None
        counts_padding = position_ids is None  # the modules then count slots
        if cache is None and not keep:
            return self._output(
                last_hidden_state=_run(weights, ids, starts, counts_padding, Scratch(self._model, *ids.shape))
            )
        if (held := self._cache(cache, ids)) is None:
            return None
        hidden = _run(weights, ids, starts, counts_padding, _layers(held))
        return self._output(last_hidden_state=hidden, cache=held if keep else None)

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
        if any(self._counts(value) for name, value in others.items() if name != "return_dict"):
            return False
        if torch.compiler.is_compiling() or self._model.training:
            return False
        return not (
            torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self._model.parameters())
        )

    def _counts(self, value) -> bool:
        """Return whether an argument may change what the stack computes. A wrapper passes numbers and names
        that say how it reads images; without images they do nothing."""
        if value is None or value is False:
            return False
        if not _is_wrapper(self._model):
            return True
        if isinstance(value, dict | list | tuple):
            return any(map(self._counts, value.values() if isinstance(value, dict) else value))
        return value is True or not isinstance(value, int | float | str)

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
            model, stack = self._model, stack_of(self._model)
            inside = [module for module in stack.modules() if module is not stack]
            native = supports(model) is None and not is_hooked(*inside) and not is_replaced(*inside)
            weights = Weights(model) if native else None  # packs, so the snapshot comes after it
            wraps = _is_wrapper(model)
            if wraps and weights is not None and not self._same_as_modules(weights):
                weights = None
            head = ends_of(model)[1]
            is_plain = not wraps and not is_hooked(model, stack, head) and not is_replaced(model, head)
            state = self._state = _State(Snapshot(model), weights, is_plain)
        return state

    def agrees(self) -> bool:
        """Return whether native calls run the model's stack in its present state."""
        return self._current().weights is not None

    @torch.no_grad()
    def _same_as_modules(self, weights: Weights) -> bool:
        """Return whether the native step and the modules of a wrapper's stack agree on a few tokens. A
        wrapper may change what its text model computes: that of PaliGemma reads prompts without a causal
        mask."""
        stack = stack_of(self._model)
        ids = torch.arange(_PROBED)[None].remainder(weights.tokens)
        native = _run(weights, ids, None, True, Scratch(self._model, *ids.shape))
        modules = type(stack).forward(stack, input_ids=ids, use_cache=False).last_hidden_state
        return torch.allclose(native, modules, rtol=_TOLERANCE, atol=_TOLERANCE * float(modules.abs().max()))

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


def _is_wrapper(model: Any) -> bool:
    return model.config.get_text_config() is not model.config


def _layers(cache: Cache) -> NativeLayers:
    return cast(NativeLayers, cache.layers)


def _run(
    weights: Weights,
    ids: torch.Tensor,
    starts: torch.Tensor | None,
    counts_padding: bool,
    layers: NativeLayers | Scratch,
) -> torch.Tensor:
    """Return the stack's output for `ids` (sequences, tokens) and append keys and values to `layers`."""
    layers.reserve(ids.shape[0], layers.length + ids.shape[1])
    hidden = torch.empty(*ids.shape, weights.hidden)
    weights.run(_checked(weights, ids), layers, starts, counts_padding=counts_padding, hidden=hidden)
    return hidden


def _checked(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    if int(ids.min()) < 0 or int(ids.max()) >= weights.tokens:
        raise IndexError(f"a token lies outside the vocabulary of {weights.tokens}")
    return ids.to(torch.int64).contiguous()


def _padding(mask, position_ids, ids: torch.Tensor, cache) -> torch.Tensor | Literal[False] | None:
    """Return how many slots of each sequence are padding (sequences,); None for none, False if mask or
    positions describe anything else."""
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
        if not ((position_ids == expected) | (expected < 0)).all():  # positions of padding do not matter
            return False
    return starts

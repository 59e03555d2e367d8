"""Size of the key-value cache per layer, as the caches of transformers hold it.

full        every token: KV heads · (key + value size) numbers
sliding     the same for the last `window` - 1 tokens
latent      every token: one compressed vector and the rotary key, shared by all heads (MLA, DeepSeek)
none        no tokens: layers of a recurrence, and layers that share another layer's cache

A recurrence (linear attention, state space, convolution) has a state of constant size, kept in fp32. Its size
is that of the cache that the model fills on the meta device.

bytes = users · Σ over layers (numbers per token · tokens kept · bits + state · 32) / 8

Quantized formats (`qcore.formats.kv`) keep their newest tokens unquantized, so each format counts its own
bytes.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from qcore.base.errors import InputError
from qcore.base.registry import unknown
from qcore.base.transformers_internals import cache_layers, is_stateful
from qcore.formats import kv
from qcore.formats.kv import GROUP, SCALE_BITS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("qcore.planning")
_RECURRENT = ("conv", "linear_attention", "mamba")  # kinds of layers without keys and values


@dataclass(frozen=True)
class CacheFormat:
    """How keys and values are stored: `bits` per number, scales included. `form` is set for quantized
    formats, whose newest tokens take more."""

    name: str
    bits: float
    description: str
    form: kv.KVFormat | None = None


FORMATS = {
    format.name: format
    for format in (
        CacheFormat("fp32", 32, "as qcore computes on a CPU"),
        CacheFormat("fp16", 16, "half the bytes; tokens may differ in rare cases"),
        *(
            CacheFormat(form.name, form.bits + SCALE_BITS / GROUP, form.description, form)
            for form in kv.KV_FORMATS.values()
        ),
    )
}


@dataclass(frozen=True)
class CacheLayer:
    """The cache of one layer: its `kind` (see above), `numbers` kept per token, the limit of tokens (`most`,
    None: no limit), the key and value size per head (`size`), the numbers of a recurrent `state`, and whether
    a quantized format covers the layer (`plain`)."""

    kind: str
    numbers: int
    most: int | None = None
    size: int = GROUP
    state: int = 0
    plain: bool = True

    def held(self, tokens: int) -> int:
        """Return the count of numbers held after `tokens` tokens."""
        return self.numbers * (tokens if self.most is None else min(tokens, self.most))

    def bits(self, tokens: int, format: CacheFormat) -> float:
        """Return the bits held after `tokens` tokens in `format`."""
        state = 32 * self.state
        if not self.numbers or (format.form is not None and not self.plain):
            return state + 32 * self.held(tokens)
        if format.form is None:
            return state + self.held(tokens) * format.bits
        window = None if self.most is None else self.most + 1
        return state + format.form.layer_bits(
            self.numbers // (2 * self.size), self.size, self.size, tokens, window=window
        )


def format_named(name: str) -> CacheFormat:
    """Return the format called `name`. Raise `InputError` with similar names for an unknown one."""
    if name not in FORMATS:
        raise unknown("KV cache format", name, FORMATS)
    return FORMATS[name]


def formats_for(config) -> tuple[str, ...]:
    """Return the names of the cache formats that the architecture of `config` supports."""
    try:
        kv.check_config(config)
    except InputError:
        return tuple(name for name, format in FORMATS.items() if format.form is None)
    return tuple(FORMATS)


def layout(model: PreTrainedModel) -> tuple[CacheLayer, ...]:
    """Return one entry per layer of `model`, which may be on the meta device."""
    if model not in _layouts:
        _layouts[model] = _find(model)
    return _layouts[model]


_layouts: WeakKeyDictionary[PreTrainedModel, tuple[CacheLayer, ...]] = WeakKeyDictionary()


def kv_bytes(
    layers: tuple[CacheLayer, ...], tokens: int, users: int = 1, format: CacheFormat = FORMATS["fp32"]
) -> int:
    """Return the bytes of the caches of `users` sequences of `tokens` tokens each."""
    return round(users * sum(layer.bits(tokens, format) for layer in layers) / 8)


def describe(layers: tuple[CacheLayer, ...]) -> str:
    """Describe the cache in one phrase: "30 layers of 384 numbers per token", by kind of layer."""
    groups: dict[CacheLayer, int] = {}
    for layer in layers:
        groups[layer] = groups.get(layer, 0) + 1
    return ", ".join(_phrase(layer, count) for layer, count in groups.items())


def _phrase(layer: CacheLayer, count: int) -> str:
    state = f"a state of {layer.state:,} numbers" if layer.state else ""
    if layer.kind == "none":
        return f"{count} layers with {state}" if state else f"{count} layers without one"
    kind = {"latent": "latent ", "sliding": "sliding "}.get(layer.kind, "")
    limit = f", the last {layer.most:,} tokens" if layer.most is not None else ""
    return f"{count} {kind}layers of {layer.numbers:,} numbers per token{limit}{state and f' and {state}'}"


def _find(model: PreTrainedModel) -> tuple[CacheLayer, ...]:
    config = model.config.get_text_config()
    kinds, options = cache_layers(config)
    covered = kv.quantizable(config)
    layers = [
        replace(_layer(kind, option, own), plain=plain)
        for kind, option, own, plain in zip(kinds, options, config.per_layer_config, covered, strict=True)
    ]
    if not is_stateful(model) and set(kinds) <= {*kv.PLAIN, "dummy"}:
        return tuple(layers)
    try:
        states = _states(model, len(layers))
    except (NotImplementedError, RuntimeError) as error:  # an operation that needs values
        log.warning("The states of %s are left out of its plan: %s", type(model).__name__, error)
        return tuple(layers)
    if states is None:  # the model keeps nothing that qcore could carry: see runtime/past.py
        return tuple(CacheLayer("none", 0) for _ in layers)
    return tuple(_with_state(kinds[like], layers[like], *held) for like, *held in states)


def _with_state(kind: str, layer: CacheLayer, numbers: int, state: int) -> CacheLayer:
    """Return `layer` with the numbers of its `state`; without keys and values if it holds no `numbers` of
    them."""
    if kind not in (*kv.PLAIN, *kv.BESIDE_STATE, *_RECURRENT, "dummy"):
        return layer  # another kind: its content may grow with the text, so one token says nothing about it
    return replace(layer, state=state) if numbers else CacheLayer("none", 0, state=state)


def _states(model: PreTrainedModel, count: int) -> list[tuple[int, int, int]] | None:
    """Return (number of a layer of the same kind, numbers of keys and values, numbers of the state) of each
    layer of the cache after one token; None if the model returns no cache. There are more than the model's
    `count` layers if the model runs some of them several times (Inkling 2)."""
    from qcore.runtime.past import held_bytes

    past = _after_one_token(model)
    if past is None:
        return None
    layers = getattr(past, "layers", [])
    tokens = [held_bytes([getattr(layer, "keys", None), getattr(layer, "values", None)]) for layer in layers]
    every = [held_bytes(layer) for layer in layers]
    tokens, every = (each + [0] * (count - len(each)) for each in (tokens, every))
    found = [(each // 4, (whole - each) // 4) for each, whole in zip(tokens, every, strict=True)]
    beside = held_bytes(past) // 4 - sum(every) // 4  # states that the cache holds beside its layers
    empty = [i for i, (numbers, state) in enumerate(found) if not numbers and not state]
    for i in empty:
        found[i] = (0, beside // len(empty))
    forms = [(type(layer), getattr(layer, "sliding_window", None)) for layer in layers]
    return [
        (i if i < count else forms.index(forms[i], 0, count), *numbers) for i, numbers in enumerate(found)
    ]


def _after_one_token(model: PreTrainedModel) -> object:
    """Return the cache of `model` after one token on the meta device. Experts, whose choice needs values, are
    left out."""
    import torch

    from qcore.layers.experts import expert_layouts

    copy = deepcopy(model).to("meta")  # type: ignore[arg-type]
    for name in {name.rpartition(".")[0] for name in expert_layouts(copy)}:
        copy.get_submodule(name).forward = lambda inputs, *_, **__: torch.zeros_like(inputs)
    with torch.no_grad(), torch.device("meta"):
        output = copy(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True)
    return getattr(output, "cache", None) or getattr(output, "state", None)


def _layer(kind: str, options: dict, config) -> CacheLayer:
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    if kind in (*_RECURRENT, "dummy") or not heads:
        return CacheLayer("none", 0)
    window = options.get("sliding_window")
    if getattr(config, "kv_lora_rank", None):
        return CacheLayer("latent", config.kv_lora_rank + config.qk_rope_head_dim)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * heads * size
    return (
        CacheLayer("full", numbers, None, size)
        if window is None
        else CacheLayer("sliding", numbers, max(window - 1, 1), size)
    )

"""A key-value cache in 8 or 4 bits for models of transformers: `forms` defines the storage.

`update` gives attention all held keys and values, dequantized, followed by the new ones unquantized, and only
then quantizes old ones. So a prompt read in one pass attends to exact keys within itself, and every later
token reads the codes. A text read 32 tokens at a time, from the start, sees exactly what token-by-token
decoding would see, because codes are only made at multiples of 32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, LinearAttentionLayer

from qcore.base.errors import InputError
from qcore.base.transformers_internals import cache_layers
from qcore.formats.kv import (
    BESIDE_STATE,
    GROUP,
    KVFormat,
    check_config,
    quantizable,
    tokens_dropped,
    tokens_held,
    value_group,
)
from qcore.formats.kv_affine import Codes, dequantize, quantize
from qcore.runtime.past import held_bytes, past_of


class QuantizedKVLayer(CacheLayerMixin):
    """Keys and values of one layer, of any number of sequences. `window`: number of tokens that attention
    sees, the current one included; None for no limit."""

    is_croppable = False

    def __init__(self, form: KVFormat, window: int | None = None):
        super().__init__()
        self.form, self.window, self.is_sliding = form, window, window is not None
        self.length = 0
        # keys (sequences, heads, groups, tokens, channels), values (sequences, heads, tokens, groups,
        # channels)
        self._old: tuple[Codes, Codes] | None = None

    @property
    def nbytes(self) -> int:
        """Return the bytes of all held tensors."""
        parts: list[torch.Tensor | Codes] = [*self._exact()] if self.is_initialized else []
        return sum(part.nbytes for part in (*parts, *(self._old or ())))

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.device, self.dtype = key_states.device, key_states.dtype
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (sequences, heads, tokens, head size) and return all held ones, in the same
        type."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held_keys, held_values = self._exact()
        exact = torch.cat((held_keys, key_states), dim=2), torch.cat((held_values, value_states), dim=2)
        seen = exact
        if self._old is not None:
            keys, values = self._widened(*self._old)
            seen = torch.cat((keys, exact[0]), dim=2), torch.cat((values, exact[1]), dim=2)
        before, self.length = self.length, self.length + key_states.shape[2]
        self._settle(*exact, tokens_dropped(self.length, self.window) - tokens_dropped(before, self.window))
        return seen

    def _exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the newest keys and values, which are not quantized."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _settle(self, keys: torch.Tensor, values: torch.Tensor, drop: int) -> None:
        """Keep the newest of the exact `keys` and `values`, quantize the others, and discard the `drop`
        oldest tokens."""
        old = keys.shape[2] - tokens_held(self.length)[1]
        if old:
            key_groups = keys[:, :, :old].unflatten(2, (-1, GROUP))
            value_groups = values[:, :, :old].unflatten(3, (-1, value_group(values.shape[3])))
            new = quantize(key_groups, self.form.bits, dim=3), quantize(value_groups, self.form.bits, dim=4)
            known = self._old
            self._old = new if known is None else (_joined(known[0], new[0]), _joined(known[1], new[1]))
        if drop and self._old is not None:
            self._old = _from(self._old[0], drop // GROUP), _from(self._old[1], drop)
        self.keys, self.values = keys[:, :, old:].clone(), values[:, :, old:].clone()

    def _widened(self, keys: Codes, values: Codes) -> tuple[torch.Tensor, torch.Tensor]:
        """Dequantize `keys` and `values` to (sequences, heads, tokens, head size)."""
        exact_keys, exact_values = self._exact()
        size, grouped = exact_keys.shape[3], value_group(exact_values.shape[3])
        wide_keys = dequantize(keys, self.form.bits, size, self.dtype).flatten(2, 3)
        return wide_keys, dequantize(values, self.form.bits, grouped, self.dtype).flatten(3, 4)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (number of tokens that attention gets, index of the first of them)."""
        dropped = tokens_dropped(self.length, self.window)
        return self.length - dropped + query_length, dropped

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.keys = self.values = self._old = None
        self.length, self.is_initialized = 0, False

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._each(lambda part: part[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda part: part.repeat_interleave(repeats, dim=0))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        def changed(codes: Codes) -> Codes:
            return Codes(change(codes.packed), change(codes.scale), change(codes.smallest))

        if not self.is_initialized:
            return
        keys, values = self._exact()
        self.keys, self.values = change(keys), change(values)
        if self._old is not None:
            self._old = changed(self._old[0]), changed(self._old[1])


class QuantizedHybridLayer(LinearAttentionLayer, QuantizedKVLayer):  # type: ignore[misc, override]
    """Quantized keys and values, and beside them the states of a recurrence, which stay as computed."""

    is_croppable = False

    def __init__(self, form: KVFormat, window: int | None, states: int):
        QuantizedKVLayer.__init__(self, form, window)
        LinearAttentionLayer.__init__(self, number_of_states=states)

    def lazy_initialization(self, *keys_and_values, **states) -> None:
        if keys_and_values:
            QuantizedKVLayer.lazy_initialization(self, *keys_and_values)
        else:
            LinearAttentionLayer.lazy_initialization(self, **states)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all held tensors, the states included."""
        states = (*self.conv_states.values(), *self.recurrent_states.values())
        return QuantizedKVLayer.nbytes.fget(self) + held_bytes(states)  # type: ignore[attr-defined]

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        QuantizedKVLayer.reset(self)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        LinearAttentionLayer.reorder_cache(self, beam_idx)
        QuantizedKVLayer.reorder_cache(self, beam_idx)


class QuantizedKVCache(Cache):
    """Return an empty cache in the form `form` for a model with this transformers `config`; pass it to a
    model or to `generate` as `cache=`. Layers without plain keys and values keep what the model's own cache
    keeps.

    Raise `InputError` for an architecture none of whose layers has plain keys and values.
    """

    def __init__(self, config, form: KVFormat):
        super().__init__(layers=quantized_layers(config, form))
        self.form = form

    @property
    def nbytes(self) -> int:
        """Return the stored bytes of all keys, values and states."""
        return held_bytes(self.layers)


def quantized_layers(config, form: KVFormat) -> list[Any]:
    """Return the empty layers of a cache in the form `form`. Raise `InputError` as `QuantizedKVCache`."""
    check_config(config)
    text = config.get_text_config()
    kinds, options = cache_layers(text)
    made: list[Any] = list(DynamicCache(config=text).layers)
    for i, can in enumerate(quantizable(text)):
        window = options[i].get("sliding_window")
        if can and kinds[i] in BESIDE_STATE:
            made[i] = QuantizedHybridLayer(form, window, options[i].get("number_of_states", 1))
        elif can:
            made[i] = QuantizedKVLayer(form, window)
    return made


def quantized_cache(model: nn.Module, form: KVFormat) -> Cache:
    """Return an empty cache in the form `form` for `model`, of the class that the model asks for (MiniMax's
    holds the states beside the layers). Raise `InputError` as `QuantizedKVCache`."""
    config: Any = model.config
    check_config(config)
    past, name = past_of(model), type(model).__name__
    if past.argument != "cache":
        raise InputError(
            f"{name} does not read on from a cache of keys and values, so none can be quantized."
        )
    if not issubclass(past.cache, Cache):
        raise InputError(
            f"{name} keeps a state instead of keys and values, so its cache cannot be quantized."
        )
    if past.cache is DynamicCache:
        return QuantizedKVCache(config, form)
    made: Any = past.cache()
    made.layer_class_to_replicate = iter(
        quantized_layers(config, form)
    ).__next__  # one layer per first update
    return made


def _joined(first: Codes, second: Codes) -> Codes:
    """Concatenate both along the tokens (for keys: along the groups of tokens)."""
    return Codes(
        *(torch.cat(pair, dim=2) for pair in zip(vars(first).values(), vars(second).values(), strict=True))
    )


def _from(codes: Codes, start: int) -> Codes:
    return Codes(*(part[:, :, start:].clone() for part in vars(codes).values()))

"""The formats of the key-value cache, by name, and their exact sizes in bytes.

Following KIVI (Z. Liu et al., 2024, arXiv 2402.02750), keys are quantized along each channel, because some
channels are large for every token, and values along each token. A group of 32 numbers shares a scale and a
smallest value, both float16:

    keys      32 tokens of one channel of one head
    values    32 channels of one token of one head (fewer if a head's size is not a multiple of 32)

The newest tokens stay unquantized: when there are 64 of them, the oldest 32 are quantized, so the last 32 to
63 are always exact. `tokens_held` alone defines these counts, for the cache and for planning.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError
from qcore.base.registry import unknown
from qcore.base.transformers_internals import cache_layers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NONE = "none"
GROUP = 32  # tokens of a key's channel, and channels of a value's token, that share a scale
RECENT = 32  # newest tokens that are never quantized
SMALLEST_GROUP = 8
SCALE_BITS = 32  # a scale and a smallest value, 16 bits each
BESIDE_STATE = ("hybrid", "hybrid_sliding")  # layers with keys and values and with the state of a recurrence
PLAIN = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class KVFormat:
    """A format with `bits` bits per code; see the module docstring."""

    name: str
    bits: int

    @property
    def description(self) -> str:
        """A phrase for users."""
        exact = f"the last {RECENT} to {RECENT + GROUP - 1} tokens exact"
        return f"{self.bits}-bit codes, groups of {GROUP}: keys by channel, values by token, {exact}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary for records."""
        return {"name": self.name, "bits": self.bits, "group": GROUP, "recent": RECENT}

    def layer_bits(
        self,
        heads: int,
        key_size: int,
        value_size: int,
        tokens: int,
        exact_bits: int = 32,
        window: int | None = None,
    ) -> int:
        """Return the bits that one layer holds after `tokens` tokens of one sequence, with `exact_bits` per
        unquantized number."""
        quantized, exact = tokens_held(tokens, window)
        coded = quantized * heads * (key_size + value_size) * self.bits
        scales = quantized // GROUP * heads * key_size + quantized * heads * (
            value_size // value_group(value_size)
        )
        return coded + scales * SCALE_BITS + exact * heads * (key_size + value_size) * exact_bits


KV_FORMATS = {format.name: format for format in (KVFormat("int8", 8), KVFormat("int4", 4))}


def kv_format_named(name: str | None) -> KVFormat | None:
    """Return the format called `name`; None for "none" (or None), which keeps keys and values as computed.
    Raise `InputError` with near names for any other."""
    if name is None or name == NONE:
        return None
    if name not in KV_FORMATS:
        raise unknown("KV cache format", str(name), [NONE, *KV_FORMATS])
    return KV_FORMATS[name]


def tokens_held(tokens: int, window: int | None = None) -> tuple[int, int]:
    """Return (quantized, exact) tokens that a layer holds after `tokens`. With a sliding `window`, whole
    groups that no later token sees are dropped.

    >>> tokens_held(63), tokens_held(64), tokens_held(100)
    ((0, 63), (32, 32), (64, 36))
    """
    quantized = max(0, (tokens - RECENT) // GROUP * GROUP)
    return quantized - tokens_dropped(tokens, window), tokens - quantized


def tokens_dropped(tokens: int, window: int | None) -> int:
    """Return how many of the oldest of `tokens` tokens a layer with a sliding `window` has dropped. Only
    whole, quantized groups are dropped."""
    if window is None:
        return 0
    quantized = max(0, (tokens - RECENT) // GROUP * GROUP)
    return min(quantized, max(0, (tokens - window + 1) // GROUP * GROUP))


def value_group(size: int) -> int:
    """Return how many channels of a value of `size` share a scale: the largest power of two up to 32 that
    divides it."""
    return gcd(size, GROUP)


def quantizable(config: PreTrainedConfig) -> list[bool]:
    """Return for each layer of a transformers text `config` whether it caches plain keys and values, in heads
    whose size is a multiple of the smallest group."""
    if getattr(config, "kv_lora_rank", None):
        return [False] * len(cache_layers(config)[0])
    return [
        kind in (*PLAIN, *BESIDE_STATE) and value_group(_head_size(layer)) >= SMALLEST_GROUP
        for kind, layer in zip(cache_layers(config)[0], config.per_layer_config, strict=True)
    ]


def kept_layers(config: PreTrainedConfig) -> dict[str, int]:
    """Return how many layers of each kind keep their cache or state as computed: {"linear_attention": 24}."""
    text = config.get_text_config()
    kinds = (kind for kind, can in zip(cache_layers(text)[0], quantizable(text), strict=True) if not can)
    return dict(Counter(kinds))


def check_config(config: PreTrainedConfig) -> None:
    """Raise `InputError` unless some layer of a transformers `config` caches keys and values that can be
    quantized."""
    text = config.get_text_config()
    if any(quantizable(text)):
        return
    name = (getattr(text, "architectures", None) or [text.model_type])[0]
    if getattr(text, "kv_lora_rank", None):
        raise InputError(
            f"{name} caches one compressed vector per token instead of keys and values, so its cache cannot "
            "be quantized."
        )
    kinds = cache_layers(text)[0]
    sizes = {
        _head_size(layer)
        for kind, layer in zip(kinds, text.per_layer_config, strict=True)
        if kind in (*PLAIN, *BESIDE_STATE)
    } - {0}
    if sizes:
        raise InputError(
            f"{name} has heads of {min(sizes)} numbers; a cache is only quantized in multiples of "
            f"{SMALLEST_GROUP}."
        )
    others = sorted(set(kinds) - set(PLAIN)) or ["a state"]
    raise InputError(
        f"{name} has no layers that cache plain keys and values ({', '.join(others)}), so its cache cannot "
        "be quantized."
    )


def _head_size(layer: PreTrainedConfig) -> int:
    """Return the size of the layer's heads; 0 without attention heads."""
    heads = getattr(layer, "num_attention_heads", None)
    return getattr(layer, "head_dim", None) or (layer.hidden_size // heads if heads else 0)

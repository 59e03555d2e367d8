"""Size of the key-value cache per layer, as the caches of transformers hold it.

full        every token: KV heads · (key + value size) numbers
sliding     the same for the last `window` - 1 tokens
latent      every token: one compressed vector and the rotary key, shared by all heads (MLA, DeepSeek)
none        no tokens: layers with a state of constant size (convolution, linear attention) and layers that
            share another layer's cache

bytes = users · Σ over layers (numbers per token · tokens kept) · bits / 8

Quantized formats (`qcore.formats.kv`) keep their newest tokens unquantized, so each format counts its own
bytes.
"""

from dataclasses import dataclass

from qcore.base.errors import InputError
from qcore.base.registry import unknown
from qcore.base.transformers_internals import cache_layers
from qcore.formats import kv
from qcore.formats.kv import GROUP, SCALE_BITS


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
    None: no limit), and the key and value size per head (`size`)."""

    kind: str
    numbers: int
    most: int | None = None
    size: int = GROUP

    def held(self, tokens: int) -> int:
        """Return the count of numbers held after `tokens` tokens."""
        return self.numbers * (tokens if self.most is None else min(tokens, self.most))

    def bits(self, tokens: int, format: CacheFormat) -> float:
        """Return the bits held after `tokens` tokens in `format`."""
        if format.form is None or not self.numbers:
            return self.held(tokens) * format.bits
        window = None if self.most is None else self.most + 1
        return format.form.layer_bits(
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


def layout(config) -> tuple[CacheLayer, ...]:
    """Return one entry per layer of a transformers text `config`."""
    kinds, options = cache_layers(config)
    configs = config.per_layer_config
    return tuple(_layer(*each) for each in zip(kinds, options, configs, strict=True))


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
    if layer.kind == "none":
        return f"{count} layers without one"
    kind = {"latent": "latent ", "sliding": "sliding "}.get(layer.kind, "")
    limit = f", the last {layer.most:,} tokens" if layer.most is not None else ""
    return f"{count} {kind}layers of {layer.numbers:,} numbers per token{limit}"


def _layer(kind: str, options: dict, config) -> CacheLayer:
    if kind in ("conv", "linear_attention", "mamba", "dummy"):
        return CacheLayer("none", 0)
    window = options.get("sliding_window")
    if getattr(config, "kv_lora_rank", None):
        return CacheLayer("latent", config.kv_lora_rank + config.qk_rope_head_dim)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * heads * size
    return (
        CacheLayer("full", numbers, None, size)
        if window is None
        else CacheLayer("sliding", numbers, max(window - 1, 1), size)
    )

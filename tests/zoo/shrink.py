"""Tiny configurations: the defaults of any configuration class of transformers, shrunk by the role of each
field.

A field is recognized by its name (`_ROLES`), or else by its value: a width that equals the class's hidden
size stays equal to it, and any other large number becomes a small one. What an architecture requires beyond
that is in `overrides`.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from tests.zoo.overrides import OVERRIDES

VOCABULARY = 320  # the 258 tokens of tiny.tokenizer, and room for the ids of pads, images and sounds
POSITIONS = 512
BOS, EOS, FIRST_FREE_ID = 256, 257, 258


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of one tiny model: odd on purpose, and different from one architecture to the next."""

    hidden: int
    inner: int
    expert: int  # width of an expert
    heads: int
    kv_heads: int
    head_dim: int
    experts: int = 4
    per_token: int = 2
    layers: int = 2


# Every width is a multiple of 64, as in most published models: for exports, whose formats require it.
EVEN = Shape(hidden=64, inner=128, expert=64, heads=4, kv_heads=2, head_dim=32)


def shape_of(name: str) -> Shape:
    """Return the shape for the architecture `name`, by a hash of the name."""
    variants = (
        Shape(hidden=64, inner=120, expert=40, heads=4, kv_heads=1, head_dim=32),
        Shape(hidden=96, inner=160, expert=48, heads=4, kv_heads=2, head_dim=16),
        Shape(hidden=80, inner=136, expert=56, heads=2, kv_heads=1, head_dim=48),
        Shape(hidden=128, inner=200, expert=64, heads=8, kv_heads=1, head_dim=32),
    )
    return variants[zlib.crc32(name.encode()) % len(variants)]


# Sizes that some classes leave to the checkpoint.
_REQUIRED = ("head_dim", "num_experts_per_tok", "n_routed_experts", "n_shared_experts", "num_key_value_heads")
_Value = Callable[[Shape, int], object]
# (names of fields, value); the first match holds. `default` is the number that the class has.
_ROLES: tuple[tuple[str, _Value], ...] = (
    (r".*vocab_size(_per_layer_input)?|unpadded_vocab_size", lambda shape, default: min(default, VOCABULARY)),
    (r"type_vocab_size|.*_types", lambda shape, default: min(default, 4)),
    (
        r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length)"
        r"|(original_max_position_embeddings|max_(source|target)_positions)",
        lambda shape, default: POSITIONS,
    ),
    (r"sliding_window(_size)?|attention_window_size|window_size|local_attention", lambda shape, default: 16),
    (r"attention_chunk_size|(mamba_)?chunk_size|index_topk|rel_extent", lambda shape, default: 16),
    (
        r"(num_)?((key|query|kv)_value|kv|key_value)_heads|(swa_)?num_key_value_heads|kv_n_heads|.*_kv_heads",
        lambda shape, default: shape.kv_heads,
    ),
    (r"linear_num_key_heads", lambda shape, default: 2),
    (r"linear_num_value_heads|linear_num_heads", lambda shape, default: 4),
    (
        r"(.*_)?(num_)?(attention|attn)_heads|n_heads?|num_heads|index_n_heads",
        lambda shape, default: shape.heads,
    ),
    (
        r"(swa_|global_)?head_dim|dim_head|d_head|attention_head_size|kv_channels|d_kv",
        lambda shape, default: shape.head_dim,
    ),
    (r"linear_.*head_dim|index_head_dim|(mamba_)?(head_?dim|d_head)", lambda shape, default: 16),
    (r"qk_nope_head_dim", lambda shape, default: 24),
    (r"qk_rope_head_dim|rotary_dim", lambda shape, default: 16),
    (r"v_head_dim", lambda shape, default: 40),
    (r".*lora_rank|.*_rank|laurel_rank", lambda shape, default: min(default, 16)),
    (
        r"(num_hidden_layers|n_layers?|num_layers|depth|num_blocks|.*(coder|hidden)_layers)",
        lambda shape, default: min(default, shape.layers),
    ),
    (
        r"(num_(local_|routed_)?experts|n_routed_experts|moe_num_experts)",
        lambda shape, default: shape.experts,
    ),
    (r"n_shared_experts", lambda shape, default: min(default, 2)),
    (r"(num_experts_per_tok(en)?|moe_top_?k|moe_k)", lambda shape, default: min(default, shape.per_token)),
    (r".*n_group|topk_group|num_expert_group", lambda shape, default: min(default, 2)),
    (
        r".*(moe|expert|shared).*(intermediate_size|ffn_hidden_size)",
        lambda shape, default: min(default, shape.expert),
    ),
    (
        r"(.*_)?intermediate_size(_mlp)?|(.*_)?ffn_dim|n_inner|dff|dim_ff|d_ff|ffn_hidden_size|feed_forward_size|d_inner"
        r"|mlp_dim",
        lambda shape, default: shape.inner,
    ),
    (
        r"hidden_size|d_model|n_embd|emb_dim|embedding_dim|embedding_size|hidden_dim",
        lambda shape, default: shape.hidden,
    ),
    (r"(mamba_)?(d_state|state_size)|ssm_state_size", lambda shape, default: min(default, 16)),
    (r"hidden_size_per_layer_input", lambda shape, default: 24),
    (r"first_k_dense_replace|num_dense_layers", lambda shape, default: min(default, 1)),
    (r"image_size", lambda shape, default: 32),
    (r"patch_size", lambda shape, default: min(default, 16)),
)


def config_of(model_type: str, shape: Shape | None = None) -> PreTrainedConfig:
    """Return the tiny configuration of `model_type` in `shape` (None: an odd one)."""
    return shrink(CONFIG_MAPPING[model_type], shape or shape_of(model_type))


def shrink(
    kind: type[PreTrainedConfig], shape: Shape, settings: dict[str, Any] | None = None
) -> PreTrainedConfig:
    """Return a `kind` of `shape` with `settings`, its parts included."""
    config = kind(**fields_of(kind, shape) | (settings or {}))
    rope = getattr(config, "rope_parameters", None) or {}
    if "mrope_section" in kind.ignore_keys_at_rope_validation and "rope_type" in rope:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        half = int(size * rope.get("partial_rotary_factor", 1.0)) // 2
        config.rope_parameters["mrope_section"] = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    return config


def fields_of(kind: type[PreTrainedConfig], shape: Shape) -> dict[str, Any]:
    """Return the arguments of `kind` that make it tiny."""
    chosen: dict[str, Any] = {}
    defaults = {field.name: _default(field) for field in dataclasses.fields(kind)}
    hidden = next(
        (defaults[name] for name in ("hidden_size", "d_model", "n_embd") if defaults.get(name)), None
    )
    free = iter(range(FIRST_FREE_ID, VOCABULARY))
    for name, default in defaults.items():
        if name in kind.sub_configs or name in ("id2label", "label2id", "_name_or_path"):
            continue
        if re.fullmatch(r".*(token_id|token_index|_token)s?", name):
            chosen[name] = _token(name, default, free)
        elif name == "is_decoder":  # otherwise each token of a BERT sees the following ones
            chosen[name] = True
        elif default is None and name in _REQUIRED:
            chosen[name] = _number(name, 1 << 30, None, shape)
        elif isinstance(default, int) and not isinstance(default, bool):
            chosen[name] = _number(name, default, hidden, shape)
    if (
        "kv_lora_rank" in defaults and "num_key_value_heads" in defaults
    ):  # latent attention has no key-value heads
        chosen["num_key_value_heads"] = shape.heads
    chosen |= _layers(kind, defaults, shape)
    for name, (part, settings) in _parts(kind).items():
        chosen[name] = shrink(part, shape, settings)
    override = OVERRIDES.get(kind.model_type)
    return chosen | (override.fields(shape) if override else {})


def _parts(kind: type[PreTrainedConfig]) -> dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]]:
    """Return the class of each configuration inside of `kind`, with the settings that are no sizes."""
    parts: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {}
    for name, part in {**kind.sub_configs, **getattr(kind, "sub_configs_defaults", {})}.items():
        settings: dict[str, Any] = {}
        if isinstance(part, SubConfigSpec):
            settings = {
                key: value for key, value in part.init_kwargs.items() if isinstance(value, (bool, str))
            }
            part = CONFIG_MAPPING[part.model_type] if part.model_type else part.config_class
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            parts[name] = (part, settings)
    return parts


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _token(name: str, default: Any, free) -> Any:
    """Return the id of the token `name`: that of tiny.tokenizer, the class's own if small, or one of the
    free ids."""
    if name == "bos_token_id":
        return BOS
    if name == "eos_token_id":
        return EOS
    if isinstance(default, int) and not isinstance(default, bool):
        return default if default < BOS else next(free)
    return default


def _number(name: str, default: int, hidden: int | None, shape: Shape) -> Any:
    for pattern, value in _ROLES:
        if re.fullmatch(pattern, name):
            return value(shape, default)
    if hidden and default >= 64 and default % hidden == 0:
        return default // hidden * shape.hidden
    return default if default <= 16 else 16


def _layers(kind: type[PreTrainedConfig], defaults: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Return the fields that name the kind of each layer, so that each kind occurs; none for a class without
    kinds."""
    try:
        whole = kind()
    except Exception:
        return {}
    named: dict[str, list[str]] = {}
    for field in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types", "indexer_types"):
        types = getattr(whole, field, None)
        if field in defaults and isinstance(types, (list, tuple)) and types:
            named[field] = list(types)
    if not named:
        return {}
    count = max(shape.layers, *(len(dict.fromkeys(types)) + 1 for types in named.values()))
    chosen: dict[str, Any] = {field: _sample(types, count) for field, types in named.items()}
    depth = next((name for name in ("num_hidden_layers", "n_layer", "num_layers") if name in defaults), None)
    return chosen | ({depth: count} if depth else {})


def _sample(types: list[str], count: int) -> list[str]:
    """Return `count` of `types` in their order: every kind among them, and the same kind last."""
    kinds = list(dict.fromkeys(types))
    kinds.remove(types[-1])
    ordered = kinds + [types[-1]]
    return [ordered[0]] * (count - len(ordered)) + ordered

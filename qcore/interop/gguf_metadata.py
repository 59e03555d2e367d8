"""The settings of a GGUF file: a transformers config in llama.cpp's words.

What llama.cpp computes in one fixed way is compared with the config, and another value is refused: the file
would load and compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from qcore.base.errors import InputError
from qcore.interop.gguf_names import Architecture, architecture
from qcore.interop.gguf_writer import Field

QUANTIZATION_VERSION = 2  # of ggml's block layouts
# llama.cpp's numbers of "mostly this type", a name for users: it computes by the types of the tensors
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "Q2_K_S": 21,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
}


def check(config: Any) -> None:
    """Raise `InputError` with the property of `config` that llama.cpp computes in another way."""
    known = architecture(config.model_type)
    for name, value, wanted in _fixed(config, known):
        if value not in wanted:
            allowed = " or ".join(repr(each) for each in wanted)
            raise InputError(
                f"This model has {name} = {value!r}, but llama.cpp's {known.name} computes {allowed}: a "
                "GGUF file would compute something else."
            )


def notes(config: Any) -> tuple[str, ...]:
    """Return a sentence for each thing that llama.cpp computes differently in certain cases."""
    window = getattr(config, "sliding_window", None)
    uses = getattr(config, "use_sliding_window", config.model_type in ("mistral", "mixtral", "phi3"))
    if not window or not uses or config.model_type.startswith("gemma"):
        return ()
    return (
        "llama.cpp lets every token of this architecture read all earlier ones, not only the last "
        f"{window:,} as in transformers. Longer texts get other predictions.",
    )


def fields(config: Any) -> list[Field]:
    """Return the settings of the architecture."""
    known = architecture(config.model_type)
    name = known.name
    found = [
        ("context_length", "u32", config.max_position_embeddings),
        ("embedding_length", "u32", config.hidden_size),
        ("block_count", "u32", config.num_hidden_layers),
        ("feed_forward_length", "u32", _feed_forward(config)),
        ("attention.head_count", "u32", config.num_attention_heads),
    ]
    if config.model_type == "gpt2":
        found.append(("attention.layer_norm_epsilon", "f32", config.layer_norm_epsilon))
        return _named(name, found)
    found.append(("attention.head_count_kv", "u32", config.num_key_value_heads))
    found.append(("attention.layer_norm_rms_epsilon", "f32", config.rms_norm_eps))
    if getattr(config, "head_dim", None):
        found += [("attention.key_length", "u32", head_size(config))]
        found += [("attention.value_length", "u32", head_size(config))]
    found.append(("vocab_size", "u32", config.vocab_size))
    found += _rope(config)
    found += _window(config)
    found += _experts(config)
    if softcap := getattr(config, "attn_logit_softcapping", None):
        found.append(("attn_logit_softcapping", "f32", softcap))
    if softcap := getattr(config, "final_logit_softcapping", None):
        found.append(("final_logit_softcapping", "f32", softcap))
    return _named(name, found)


def general(
    config: Any,
    *,
    name: str,
    file_type: str,
    licence: str | None = None,
    base: str | None = None,
    quantized_by: str | None = None,
    languages: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> list[Field]:
    """Return the settings on the model's origin. `base` is the hub id of the original."""
    found = [
        Field("general.architecture", "str", architecture(config.model_type).name),
        Field("general.type", "str", "model"),
        Field("general.name", "str", name),
    ]
    if quantized_by:
        found.append(Field("general.quantized_by", "str", quantized_by))
    if licence:
        found.append(Field("general.license", "str", licence))
    if base:
        author, _, model = base.rpartition("/")
        found.append(Field("general.base_model.count", "u32", 1))
        found.append(Field("general.base_model.0.name", "str", model))
        if author:
            found.append(Field("general.base_model.0.organization", "str", author))
        found.append(Field("general.base_model.0.repo_url", "str", f"https://huggingface.co/{base}"))
    if tags:
        found.append(Field("general.tags", "[str]", list(tags)))
    if languages:
        found.append(Field("general.languages", "[str]", list(languages)))
    found.append(Field("general.file_type", "u32", FILE_TYPES[file_type]))
    found.append(Field("general.quantization_version", "u32", QUANTIZATION_VERSION))
    return found


def extra_tensors(config: Any) -> dict[str, torch.Tensor]:
    """Return the float32 tensors that no parameter holds: factors of the rotary frequencies."""
    rope = _rope_parameters(config)
    if rope.get("rope_type") == "llama3":
        return {"rope_freqs.weight": llama3_factors(rope, head_size(config))}
    if rope.get("rope_type") == "longrope":
        return {
            "rope_factors_long.weight": torch.tensor(rope["long_factor"], dtype=torch.float32),
            "rope_factors_short.weight": torch.tensor(rope["short_factor"], dtype=torch.float32),
        }
    return {}


def llama3_factors(rope: Mapping[str, Any], size: int) -> torch.Tensor:
    """Return by what each rotary frequency of a head of `size` is divided (size / 2,): 1 for short
    wavelengths, `factor` for long ones, and between them what a linear blend of the two frequencies gives.
    Llama 3.1's scaling, as transformers computes it."""
    frequencies = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - blend) / rope["factor"] + blend)).float()


def head_size(config: Any) -> int:
    """Return the width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _named(name: str, found: Sequence[tuple[str, str, Any]]) -> list[Field]:
    return [Field(f"{name}.{key}", kind, value) for key, kind, value in found]


def _feed_forward(config: Any) -> int:
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return inner or 4 * config.hidden_size


def _rope_parameters(config: Any) -> Mapping[str, Any]:
    """Return the rotary settings of the layers with full attention."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def _rope(config: Any) -> Iterator[tuple[str, str, Any]]:
    rope = _rope_parameters(config)
    rotated = int(head_size(config) * rope.get("partial_rotary_factor", 1.0))
    yield "rope.dimension_count", "u32", rotated
    yield "rope.freq_base", "f32", rope["rope_theta"]
    every = getattr(config, "rope_parameters", None) or {}
    if local := every.get("sliding_attention"):
        yield "rope.freq_base_swa", "f32", local["rope_theta"]
    kind, factor = rope.get("rope_type", "default"), rope.get("factor")
    if kind in ("linear", "yarn", "longrope"):
        yield "rope.scaling.type", "str", kind
    if kind in ("linear", "yarn"):
        yield "rope.scaling.factor", "f32", factor
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        yield "rope.scaling.original_context_length", "u32", original
        for key in ("beta_fast", "beta_slow"):
            if rope.get(key) is not None:
                yield f"rope.scaling.yarn_{key}", "f32", rope[key]
    if kind == "longrope":
        original = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        yield "rope.scaling.original_context_length", "u32", original
        yield "rope.scaling.attn_factor", "f32", rope.get("attention_factor") or attention
    elif config.model_type == "phi3":
        yield "rope.scaling.original_context_length", "u32", config.original_max_position_embeddings


def _window(config: Any) -> Iterator[tuple[str, str, Any]]:
    if config.model_type in ("gemma2", "gemma3_text") and config.sliding_window:
        yield "attention.sliding_window", "u32", config.sliding_window
        local = [kind == "sliding_attention" for kind in config.layer_types]
        period = {"gemma2": 2, "gemma3_text": 6}[config.model_type]
        if local != [(i + 1) % period != 0 for i in range(len(local))]:
            yield "attention.sliding_window_pattern", "[bool]", local


def _experts(config: Any) -> Iterator[tuple[str, str, Any]]:
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not count:
        return
    yield "expert_count", "u32", count
    yield "expert_used_count", "u32", config.num_experts_per_tok
    if width := getattr(config, "moe_intermediate_size", None):
        yield "expert_feed_forward_length", "u32", width
    if width := getattr(config, "shared_expert_intermediate_size", None):
        yield "expert_shared_feed_forward_length", "u32", width


def _fixed(config: Any, known: Architecture) -> Iterator[tuple[str, Any, tuple]]:
    """Yield (property, its value, the values that llama.cpp means)."""
    for name in ("hidden_activation", "hidden_act", "activation_function"):
        if getattr(config, name, None) is not None:
            yield name, getattr(config, name), known.activations
            break
    if config.model_type != "gpt2":
        yield "rope_type", _rope_parameters(config).get("rope_type", "default"), known.ropes
    if known.normalized is not None and hasattr(config, "norm_topk_prob"):
        yield "norm_topk_prob", bool(config.norm_topk_prob), (known.normalized,)
    if getattr(config, "clip_qkv", None) is not None:
        yield "clip_qkv", config.clip_qkv, (None,)
    if hasattr(config, "decoder_sparse_step"):
        yield "decoder_sparse_step", config.decoder_sparse_step, (1,)
        yield "mlp_only_layers", list(getattr(config, "mlp_only_layers", None) or []), ([],)
    if known.name in ("qwen2", "qwen2moe", "olmoe", "phi3"):
        width = config.hidden_size // config.num_attention_heads
        yield "head_dim", head_size(config), (width,)
    if known.name == "olmoe":
        yield "num_key_value_heads", config.num_key_value_heads, (config.num_attention_heads,)
    if hasattr(config, "query_pre_attn_scalar"):
        largest = {"gemma2": 46, "gemma3_text": 62}[config.model_type]
        scalar = (
            config.hidden_size // config.num_attention_heads
            if config.num_hidden_layers == largest
            else head_size(config)
        )
        yield "query_pre_attn_scalar", config.query_pre_attn_scalar, (scalar,)
        yield "use_bidirectional_attention", bool(config.use_bidirectional_attention), (False,)
    if config.model_type == "gemma3_text":
        yield "attn_logit_softcapping", config.attn_logit_softcapping, (None,)
        local = (config.rope_parameters or {}).get("sliding_attention", {})
        yield "the rope_type of sliding attention", local.get("rope_type", "default"), ("default",)
    if config.model_type == "gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            value = getattr(config, name)
            yield name, value, (value or "a number",)
    if config.model_type == "gpt2":
        yield "n_inner", config.n_inner or 4 * config.n_embd, (4 * config.n_embd,)
        yield "scale_attn_weights", config.scale_attn_weights, (True,)
        yield "scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx, (False,)

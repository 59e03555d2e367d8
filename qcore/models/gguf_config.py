"""The settings of a GGUF file as a transformers config: the inverse of `interop/gguf_metadata.py`.

transformers translates GGUF settings as well, but leaves out much of what a file can say: factors of the
rotary embedding, biases, experts of Llama, caps of logits, the ids that end a text.
"""

from __future__ import annotations

import math
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

from qcore.base.errors import InputError
from qcore.base.transformers_internals import gguf_config, gguf_setting_names
from qcore.interop.gguf_names import ARCHITECTURES
from qcore.models.config import checked, knows_field, to_transformers
from qcore.models.gguf_header import Header, without_data
from qcore.models.gguf_keys import Keys

_LONGEST_ROPE = 1 << 16  # frequencies
_TYPES = {known.name: kind for kind, known in reversed(ARCHITECTURES.items())}
_END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_REQUIRED = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_GPT2 = {
    "max_position_embeddings": "n_positions",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
}
_ATTENTION_BIAS = re.compile(r"blk\.\d+\.attn_(q|k|v|output)\.bias")
_MLP_BIAS = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.bias")
_LARGEST_GEMMA = {"gemma2": 46, "gemma3_text": 62}  # layers of the size with a scaling of its own


def knows(header: Header) -> bool:
    """Return whether the file's architecture can be translated."""
    return header.architecture in _TYPES


def config_of(path: Path, header: Header) -> dict:
    """Return the settings as a transformers config, by transformers itself for architectures that
    are not known here. Raise `InputError` for one that transformers does not know either, and for a setting
    that would be ignored."""
    if knows(header):
        return checked(settings(path, header))
    with tempfile.TemporaryDirectory(prefix="qcore-gguf-") as scratch:
        small = Path(scratch) / path.name
        small.write_bytes(without_data(header))
        try:
            parsed = gguf_config(small)
        except Exception as error:  # the library does not validate the file and may raise anything
            raise InputError(
                f"{path.name} cannot be converted: {str(error).strip().splitlines()[0]}"
            ) from error
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in parsed.items()}
    config = checked(plain)
    _check_translated(path, header, config)
    return config


def _check_translated(path: Path, header: Header, config: dict[str, Any]) -> None:
    """Raise `InputError` for a setting that transformers' translation to `config` ignores."""
    names = gguf_setting_names(header.architecture)
    if names is None:
        return
    keys = Keys(path, header)
    keys.use(*names)
    built = to_transformers(config)
    heads = getattr(built, "num_attention_heads", 0)
    width = getattr(built, "head_dim", None) or (built.hidden_size // heads if heads else None)
    rope = getattr(built, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor", getattr(built, "partial_rotary_factor", None) or 1.0)
    for key, meant in (
        ("rope.dimension_count", width and int(width * share)),
        ("attention.key_length", width),
        ("attention.value_length", width),
    ):
        if (value := keys.number(key)) not in (None, meant) and key not in names:
            raise InputError(
                f"{path.name} has {header.architecture}.{key} = {value}, but transformers' "
                f"{built.model_type} would have {meant}. Choose another file of this model, or its "
                "safetensors."
            )
    keys.check_all_used()


def settings(path: Path, header: Header) -> dict[str, Any]:
    """Return the config, not yet checked. Raise `InputError` for a setting that is missing, unknown, or
    without a counterpart in the architecture."""
    keys = Keys(path, header)
    kind, experts = _TYPES[header.architecture], keys.number("expert_count")
    if kind == "llama" and experts:
        kind = "mixtral"
    found: dict[str, Any] = {"model_type": kind, **_token_ids(header)}
    for key, name in _REQUIRED.items():
        if (value := keys.number(key)) is None:
            raise InputError(
                f"{path.name} has no {header.architecture}.{key}, so its model cannot be built. Download "
                "it again, or choose another file."
            )
        found[name] = value
    for key, name in _OPTIONAL.items():
        if knows_field(kind, name) and (value := keys.number(key)):
            found[name] = value
    if kind == "phi3" and (window := keys.number("attention.sliding_window")):
        found["sliding_window"] = window
    names = {tensor.name for tensor in header.tensors}
    rows = next((tensor.shape[0] for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    found["vocab_size"] = rows or keys.number("vocab_size")
    found["tie_word_embeddings"] = "output.weight" not in names
    if kind == "gpt2":
        found = {_GPT2.get(name, name): value for name, value in found.items()}
        if (epsilon := keys.number("attention.layer_norm_epsilon")) is not None:
            found["layer_norm_epsilon"] = epsilon
        keys.check_all_used()
        return found
    if experts:
        found["num_local_experts" if kind == "mixtral" else "num_experts"] = experts
        if (normalized := ARCHITECTURES[kind].normalized) is not None and kind != "mixtral":
            found["norm_topk_prob"] = normalized
    if kind == "llama":
        found["attention_bias"] = any(_ATTENTION_BIAS.fullmatch(name) for name in names)
        found["mlp_bias"] = any(_MLP_BIAS.fullmatch(name) for name in names)
    if kind in _LARGEST_GEMMA:
        found |= _gemma(keys, kind, found)
    found |= _rope(path, header, keys, kind, found)
    _check_heads(path, header, keys, found)
    keys.check_all_used()
    return found


def _check_heads(path: Path, header: Header, keys: Keys, found: dict[str, Any]) -> None:
    """Raise `InputError` for keys or values of another width than the head, and for an embedding that
    rotates only a part of each head, in an architecture that has neither."""
    width, own = _head_size(found), header.architecture
    for key in ("attention.key_length", "attention.value_length"):
        if (length := keys.number(key)) not in (None, width):
            raise InputError(
                f"{path.name} has {own}.{key} = {length}, but in transformers' {found['model_type']} it can "
                f"only be {width}, the size of a head. Choose another file of this model, or its safetensors."
            )
    rotated = keys.number("rope.dimension_count")
    rope = found["rope_parameters"]
    share = rope.get("full_attention", rope).get("partial_rotary_factor", 1.0)
    if rotated is not None and rotated != int(width * share):
        raise InputError(
            f"{path.name} rotates {rotated} of the {width} numbers of each head "
            f"({own}.rope.dimension_count), but transformers' {found['model_type']} rotates "
            f"{int(width * share)}. Choose another file of this model, or its safetensors."
        )


def _head_size(found: dict[str, Any]) -> int:
    return found.get("head_dim") or found["hidden_size"] // max(1, found["num_attention_heads"])


def differs_from_library(found: dict[str, Any]) -> bool:
    """Return whether the settings `found` of a known architecture include some that transformers leaves out,
    so that it would build another model: a scaled rotary embedding, biases of Llama, a size of heads that is
    not hidden size / heads, or a window."""
    rope = found.get("rope_parameters", {})
    scaled = any(
        part.get("rope_type", "default") != "default" for part in (rope, rope.get("full_attention", {}))
    )
    biased = found.get("attention_bias", False) or found.get("mlp_bias", False)
    sized = found.get("head_dim") and found["head_dim"] * found["num_attention_heads"] != found["hidden_size"]
    windowed = found["model_type"] == "phi3" and "sliding_window" in found
    return bool(scaled or biased or sized or windowed)


def _token_ids(header: Header) -> dict[str, Any]:
    """Return the ids of the special tokens: of the end of a text one id, or a list of several."""
    ends = [header.number(f"tokenizer.ggml.{key}") for key in _END_IDS]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {
        "bos_token_id": header.number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": (ends[0] if len(ends) == 1 else ends) if ends else None,
        "pad_token_id": header.number("tokenizer.ggml.padding_token_id"),
    }


def _gemma(keys: Keys, kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of attention in Gemma 2 and 3."""
    heads, layers = found["num_attention_heads"], found["num_hidden_layers"]
    width = _head_size(found)
    large = layers == _LARGEST_GEMMA[kind]
    made: dict[str, Any] = {"query_pre_attn_scalar": found["hidden_size"] // heads if large else width}
    window = keys.number("attention.sliding_window")
    # the pattern is a list, or its period
    local = keys.flags("attention.sliding_window_pattern")
    if local is None:
        period = int(keys.number("attention.sliding_window_pattern") or {"gemma2": 2, "gemma3_text": 6}[kind])
        local = [(i + 1) % period != 0 for i in range(min(layers, 1 << 12))]
    if window:
        made["sliding_window"] = window
    made["layer_types"] = [
        "sliding_attention" if window and is_local else "full_attention" for is_local in local
    ]
    return made


def _rope(path: Path, header: Header, keys: Keys, kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the rotary embedding. Raise `InputError` for a scaling of an unknown kind.

    Llama 3's scaling is stored as one factor per frequency. LongRoPE with equal factors for short and long
    texts has the same frequencies. A factor without a kind is linear, as in llama.cpp.
    """
    theta = keys.number("rope.freq_base") or 10000.0
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    width, rotated = _head_size(found), keys.number("rope.dimension_count")
    if kind == "phi3" and rotated and rotated < width:
        rope["partial_rotary_factor"] = rotated / width
    original = keys.number("rope.scaling.original_context_length")
    made: dict[str, Any] = {}
    if kind == "phi3" and original:
        made["original_max_position_embeddings"] = original
    scaling = keys.text("rope.scaling.type") or "linear"
    factor = keys.number("rope.scaling.factor") or keys.number("rope.scale_linear")
    short = _factors(path, header, "rope_freqs.weight", "rope_factors_short.weight")
    if short is not None and scaling == "yarn":
        raise InputError(
            f"{path.name} scales its rotary embedding by yarn and by factors of its own, which transformers "
            "cannot combine. Choose another file of this model, or its safetensors."
        )
    if short is not None:
        along = factor if scaling == "linear" and factor else 1.0
        long = _factors(path, header, "rope_factors_long.weight") or short
        rope |= {
            "rope_type": "longrope",
            "short_factor": [along * each for each in short],
            "long_factor": [along * each for each in long],
            "attention_factor": keys.number("rope.scaling.attn_factor") or 1.0,
            "original_max_position_embeddings": original or found["max_position_embeddings"],
        }
    elif scaling in ("linear", "yarn") and factor and (scaling, factor) != ("linear", 1.0):
        rope |= {"rope_type": scaling, "factor": factor}
        if scaling == "yarn":
            given = {
                "original_max_position_embeddings": original,
                "beta_fast": keys.number("rope.scaling.yarn_beta_fast"),
                "beta_slow": keys.number("rope.scaling.yarn_beta_slow"),
            }
            rope |= {name: value for name, value in given.items() if value is not None}
    elif scaling not in ("none", "linear", "yarn"):
        raise InputError(
            f"{path.name} scales its rotary embedding by {scaling!r} without factors, which qcore cannot "
            "compute."
        )
    if kind == "gemma3_text":
        local = keys.number("rope.freq_base_swa") or 10000.0
        sliding = {"rope_type": "default", "rope_theta": local}
        return {**made, "rope_parameters": {"full_attention": rope, "sliding_attention": sliding}}
    return {**made, "rope_parameters": rope}


def _factors(path: Path, header: Header, *names: str) -> list[float] | None:
    """Return the values of the first tensor of `names` that the file holds; None if it holds none."""
    tensor = next((tensor for tensor in header.tensors if tensor.name in names), None)
    if tensor is None:
        return None
    if tensor.type_name != "F32" or math.prod(tensor.shape) > _LONGEST_ROPE:
        raise InputError(
            f"{path.name} stores {tensor.name} as {tensor.type_name} {tensor.shape}, not as factors."
        )
    with path.open("rb") as file:
        file.seek(tensor.start)
        return list(struct.unpack(f"<{math.prod(tensor.shape)}f", file.read(tensor.nbytes or 0)))

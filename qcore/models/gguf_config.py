"""The settings of a GGUF file as a transformers config: the inverse of `interop/gguf_metadata.py`.

transformers translates GGUF settings as well, but leaves out much of what a file can say: factors of the
rotary embedding, biases, experts of Llama, caps of logits, the ids that end a text.
"""

from __future__ import annotations

import math
import struct
import tempfile
from pathlib import Path
from typing import Any

from qcore.base.errors import InputError
from qcore.base.transformers_internals import gguf_config
from qcore.interop.gguf_names import ARCHITECTURES
from qcore.models.config import checked
from qcore.models.gguf_header import Header, without_data

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
_LARGEST_GEMMA = {"gemma2": 46, "gemma3_text": 62}  # layers of the size with a scaling of its own


def knows(header: Header) -> bool:
    """Return whether the file's architecture can be translated."""
    return header.architecture in _TYPES


def config_of(path: Path, header: Header) -> dict:
    """Return the settings as a transformers config, by transformers itself for architectures that
    are not known here. Raise `InputError` for one that transformers does not know either."""
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
    return checked(plain)


def settings(path: Path, header: Header) -> dict[str, Any]:
    """Return the config, not yet checked. Raise `InputError` for a setting that is missing or unknown."""
    kind = _TYPES[header.architecture]
    experts = header.number(f"{header.architecture}.expert_count")
    if kind == "llama" and experts:
        kind = "mixtral"
    found: dict[str, Any] = {"model_type": kind, **_token_ids(header)}
    for keys, required in ((_REQUIRED, True), (_OPTIONAL, False)):
        for key, name in keys.items():
            value = header.number(f"{header.architecture}.{key}")
            if value is not None:
                found[name] = value
            elif required:
                raise InputError(
                    f"{path.name} has no {header.architecture}.{key}, so its model cannot be built. Download "
                    "it again, or choose another file."
                )
    names = {tensor.name for tensor in header.tensors}
    rows = next((tensor.shape[0] for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    found["vocab_size"] = rows or header.number(f"{header.architecture}.vocab_size")
    found["tie_word_embeddings"] = "output.weight" not in names
    if kind == "gpt2":
        found = {_GPT2.get(name, name): value for name, value in found.items()}
        if (epsilon := header.number("gpt2.attention.layer_norm_epsilon")) is not None:
            found["layer_norm_epsilon"] = epsilon
        return found
    if experts:
        found["num_local_experts" if kind == "mixtral" else "num_experts"] = experts
        if (normalized := ARCHITECTURES[kind].normalized) is not None and kind != "mixtral":
            found["norm_topk_prob"] = normalized
    if kind in ("llama", "qwen3"):
        found["attention_bias"] = "blk.0.attn_q.bias" in names
        found["mlp_bias"] = "blk.0.ffn_up.bias" in names
    if kind in _LARGEST_GEMMA:
        found |= _gemma(header, kind, found)
    return found | _rope(path, header, kind, found)


def differs_from_library(path: Path, header: Header) -> bool:
    """Return whether the file has settings that transformers leaves out, so that it would build another
    model: a scaled rotary embedding or biases of Llama."""
    if not knows(header):
        return False
    found = settings(path, header)
    rope = found.get("rope_parameters", {})
    scaled = any(
        part.get("rope_type", "default") != "default" for part in (rope, rope.get("full_attention", {}))
    )
    return scaled or (found["model_type"] == "llama" and (found["attention_bias"] or found["mlp_bias"]))


def _token_ids(header: Header) -> dict[str, Any]:
    """Return the ids of the special tokens: of the end of a text one id, or a list of several."""
    ends = [header.number(f"tokenizer.ggml.{key}") for key in _END_IDS]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {
        "bos_token_id": header.number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": (ends[0] if len(ends) == 1 else ends) if ends else None,
        "pad_token_id": header.number("tokenizer.ggml.padding_token_id"),
    }


def _gemma(header: Header, kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of attention in Gemma 2 and 3."""
    heads, layers = found["num_attention_heads"], found["num_hidden_layers"]
    width = found.get("head_dim") or found["hidden_size"] // max(1, heads)
    large = layers == _LARGEST_GEMMA[kind]
    made: dict[str, Any] = {"query_pre_attn_scalar": found["hidden_size"] // heads if large else width}
    window = header.number(f"{header.architecture}.attention.sliding_window")
    period = {"gemma2": 2, "gemma3_text": 6}[kind]
    local = header.flags(f"{header.architecture}.attention.sliding_window_pattern") or [
        (i + 1) % period != 0 for i in range(min(layers, 1 << 12))
    ]
    if window:
        made["sliding_window"] = window
    made["layer_types"] = [
        "sliding_attention" if window and is_local else "full_attention" for is_local in local
    ]
    return made


def _rope(path: Path, header: Header, kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the rotary embedding. Raise `InputError` for a scaling of an unknown kind.

    Llama 3's scaling is stored as one factor per frequency. LongRoPE with equal factors for short and long
    texts has the same frequencies.
    """
    own = header.architecture
    theta = header.number(f"{own}.rope.freq_base") or 10000.0
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    width = found.get("head_dim") or found["hidden_size"] // max(1, found["num_attention_heads"])
    rotated = header.number(f"{own}.rope.dimension_count")
    if kind == "llama" and "head_dim" not in found and rotated:
        found["head_dim"] = rotated
    elif kind == "phi3" and rotated and rotated < width:
        rope["partial_rotary_factor"] = rotated / width
    original = header.number(f"{own}.rope.scaling.original_context_length")
    made: dict[str, Any] = {}
    if kind == "phi3" and original:
        made["original_max_position_embeddings"] = original
    scaling, factor = header.text(f"{own}.rope.scaling.type"), header.number(f"{own}.rope.scaling.factor")
    short = _factors(path, header, "rope_freqs.weight", "rope_factors_short.weight")
    if short is not None:
        rope |= {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": _factors(path, header, "rope_factors_long.weight") or short,
            "attention_factor": header.number(f"{own}.rope.scaling.attn_factor") or 1.0,
            "original_max_position_embeddings": original or found["max_position_embeddings"],
        }
    elif scaling in ("linear", "yarn") and factor:
        rope |= {"rope_type": scaling, "factor": factor}
        if scaling == "yarn":
            given = {
                "original_max_position_embeddings": original,
                "beta_fast": header.number(f"{own}.rope.scaling.yarn_beta_fast"),
                "beta_slow": header.number(f"{own}.rope.scaling.yarn_beta_slow"),
            }
            rope |= {name: value for name, value in given.items() if value is not None}
    elif scaling not in (None, "none", "linear", "yarn"):
        raise InputError(
            f"{path.name} scales its rotary embedding by {scaling!r} without factors, which qcore cannot "
            "compute."
        )
    if kind == "gemma3_text":
        local = header.number(f"{own}.rope.freq_base_swa") or 10000.0
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

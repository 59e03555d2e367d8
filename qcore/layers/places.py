"""The place of a weight in a model: its role and block, by which a mixture chooses the format."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qcore.formats.mixture import Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROLES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "query_key_value": "attn_qkv",
    "c_attn": "attn_qkv",
    "o_proj": "attn_output",
    "out_proj": "attn_output",
    "attn.c_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "w1": "ffn_gate",
    "up_proj": "ffn_up",
    "gate_up_proj": "ffn_up",
    "c_fc": "ffn_up",
    "w3": "ffn_up",
    "down_proj": "ffn_down",
    "w2": "ffn_down",
    "mlp.c_proj": "ffn_down",
}
_KINDS = {"head": "output", "embedding": "token_embd"}
_BLOCK = re.compile(r"\.(\d+)\.")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def place_of(model: PreTrainedModel, module: str, parameter: str, kind: str, tied: bool) -> Place:
    """Return the place of the weight `parameter` of `module` in `model`; `kind` is that of `select.Target`,
    and `tied` says whether the embedding is the output head."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    shared = getattr(config, "num_key_value_heads", None) or heads
    number = _BLOCK.search(f"{module}.")
    return Place(
        _KINDS.get(kind) or _role(module if parameter == "weight" else f"{module}.{parameter}"),
        int(number[1]) if number else 0,
        getattr(config, "num_hidden_layers", None) or 1,
        heads // shared,
        next((count for name in _EXPERTS if (count := getattr(config, name, None))), 0),
        tied,
    )


def _role(name: str) -> str:
    parts = name.split(".")
    return _ROLES.get(parts[-1]) or _ROLES.get(".".join(parts[-2:])) or "other"

"""The table of architectures whose whole step is native: how each names its modules, and what neither its
modules nor its config say.

A new architecture of known parts is one row. `blocks.py` reads a model by its row.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """Names of modules, relative to the part that contains them, and names of attributes.

    None is a part that a block does not have. Names of parts that only some models of a family have may be
    missing from a model.
    """

    # parts of the stack
    layers: str = "layers"
    final_norm: str = "norm"
    positions: str | None = None  # an embedding of learned positions, added to that of the tokens
    # parts of a block
    attention: str = "self_attn"
    feed_forward: str = "mlp"
    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_feed_forward: str | None = "post_attention_layernorm"
    after_feed_forward: str | None = None
    # parts of attention
    inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # or one fused projection
    query_norm: str = "q_norm"
    key_norm: str = "k_norm"
    output: str = "o_proj"
    # parts of the feed-forward network: the projection that the activation function takes, the one that it
    # multiplies (None without one; the second half of `gate` if it is the same), and the one back
    gate: str = "gate_proj"
    up: str | None = "up_proj"
    down: str = "down_proj"
    # facts
    norm: Literal["rms", "layer"] = "rms"  # of norms that are not torch's LayerNorm
    norm_offset: float = 0.0  # added to the weights of norms
    norm_last: bool = False  # heads are normalized after their rotation
    fused_by: Literal["kind", "head"] = "kind"  # q q … k k … v v …, or q k v q k v …
    interleaved: bool = False  # rotary positions turn neighboring dimensions, not halves
    has_windows: bool = False  # the config's sliding window counts
    function: str = "act_fn"  # the activation function of the feed-forward network
    # names of attributes of the config, or values
    embedding_scale: str | None = None
    residual_scale: str | None = None
    logits_scale: str | None = None
    logits_divisor: str | None = None
    logits_cap: str | None = None
    parallel: str | bool = False
    # an attribute of attention that is false for layers without rotary positions
    rotates: str | None = None
    score_cap: str | None = None  # an attribute of attention


LLAMA = Family()

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": Family(has_windows=True),
    "Qwen2ForCausalLM": Family(has_windows=True),
    "Qwen3ForCausalLM": Family(has_windows=True),
    "GemmaForCausalLM": Family(norm_offset=1.0),
}

"""The table of architectures whose whole step is native: how each names its modules, and what neither its
modules nor its config say.

A new architecture of known parts is one row. `blocks.py` reads a model by its row.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TokenNames:
    """Names of the part of a block for the token itself (per-layer embeddings, Gemma 4)."""

    # in the stack
    rows: str = "embed_tokens_per_layer"
    mix: str = "per_layer_model_projection"
    mix_scale: str = "per_layer_model_projection_scale"
    norm: str = "per_layer_projection_norm"
    scale: str = "per_layer_input_scale"
    # in a block
    gate: str = "per_layer_input_gate"
    function: str = "act_fn"
    down: str = "per_layer_projection"
    after: str = "post_per_layer_input_norm"


@dataclass(frozen=True, kw_only=True)
class BesideNames:
    """Names in a block of experts beside its feed-forward part, and of the norms of both."""

    router: str = "router"
    experts: str = "experts"
    before: str = "pre_feedforward_layernorm_2"
    after_dense: str = "post_feedforward_layernorm_1"
    after_experts: str = "post_feedforward_layernorm_2"


@dataclass(frozen=True, kw_only=True)
class LatentNames:
    """Names of attention over latents (DeepSeek-V3), in place of `Family.inputs`."""

    queries: str = "q_proj"  # or, if it is None, of low rank: down, norm, up
    query_down: str = "q_a_proj"
    query_norm: str = "q_a_layernorm"
    query_up: str = "q_b_proj"
    down: str = "kv_a_proj_with_mqa"
    norm: str = "kv_a_layernorm"
    up: str = "kv_b_proj"
    # numbers
    rank: str = "kv_lora_rank"
    plain: str = "qk_nope_head_dim"
    rotated: str = "qk_rope_head_dim"
    values: str = "v_head_dim"


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
    skips_padding: bool = False  # these positions are derived from the mask
    # parts of a block; of several names, the first that a block has
    attention: str = "self_attn"
    feed_forward: str | None = "mlp"  # None: its projections are parts of the block
    before_attention: str | tuple[str, ...] | None = "input_layernorm"
    after_attention: str | None = None
    before_feed_forward: str | tuple[str, ...] | None = "post_attention_layernorm"
    after_feed_forward: str | None = None
    beside: BesideNames | None = None
    token: TokenNames | None = None
    block_scale: str | None = None  # a tensor, the last factor of the stream
    # parts of attention
    inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # or one fused projection
    query_norm: str = "q_norm"
    key_norm: str = "k_norm"
    value_norm: str = "v_norm"
    latent: LatentNames | None = None
    output: str = "o_proj"
    sinks: str = "sinks"
    scale: str = "scaling"  # of scores, an attribute
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
    interleaved: bool | str = False  # rotary positions turn neighboring dimensions, not halves
    has_windows: bool = False  # the config's sliding window counts
    function: str = "act_fn"  # the activation function of the feed-forward network
    # names of attributes of the config, or values, as `interleaved`
    input_scale: str | None = None  # of embeddings, in the stack; their own scale is asked of the embedding
    residual_scale: str | None = None
    logits_scale: str | None = None
    logits_divisor: str | None = None
    logits_cap: str | None = None
    parallel: str | bool = False
    copies_heads: str | None = None  # whether modules keep a copy of keys and values for each query head
    needs: tuple[tuple[str, Any, str], ...] = ()  # attribute, its only known value, and what another means
    # an attribute of attention that is false for layers without rotary positions
    rotates: str | None = None
    rotates_without_window: bool = False  # all layers rotate if the config has no window
    score_cap: str | None = None  # an attribute of attention


_LLAMA = Family()
_WINDOWS = Family(has_windows=True)
_GEMMA = Family(
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
    norm_offset=1.0,
    has_windows=True,
    logits_cap="final_logit_softcapping",
    score_cap="attn_logit_softcapping",
)
_GEMMA4 = replace(
    _GEMMA,
    norm_offset=0.0,
    score_cap=None,
    beside=BesideNames(),
    token=TokenNames(),
    block_scale="layer_scalar",
)
_OLMO = Family(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_feed_forward=None,
    after_feed_forward="post_feedforward_layernorm",
)
_GRANITE = Family(
    input_scale="embedding_multiplier", residual_scale="residual_multiplier", logits_divisor="logits_scaling"
)
_GLM = Family(gate="gate_up_proj", up="gate_up_proj", function="activation_fn", interleaved=True)
_LATENTS = Family(latent=LatentNames(), interleaved="rope_interleave")
_COHERE = Family(
    before_feed_forward=None, norm="layer", interleaved=True, logits_scale="logit_scale", parallel=True
)

# by the class of the stack of layers, which models of text and wrappers of them share
FAMILIES: dict[str, Family] = {
    "LlamaModel": _LLAMA,
    "MistralModel": _WINDOWS,
    "Ministral3Model": _WINDOWS,
    "Qwen2Model": _WINDOWS,
    "Qwen3Model": _WINDOWS,
    "GemmaModel": Family(norm_offset=1.0),
    "Gemma2Model": _GEMMA,
    "Gemma3TextModel": _GEMMA,
    "Gemma4TextModel": _GEMMA4,
    "Gemma4UnifiedTextModel": _GEMMA4,
    "Phi3Model": Family(
        inputs=("qkv_proj",),
        gate="gate_up_proj",
        up="gate_up_proj",
        function="activation_fn",
        has_windows=True,
    ),
    "Olmo2Model": _OLMO,
    "Olmo3Model": replace(_OLMO, has_windows=True),
    "GraniteModel": _GRANITE,
    "MixtralModel": _WINDOWS,
    "Qwen2MoeModel": _WINDOWS,
    "Qwen3MoeModel": _WINDOWS,
    "OlmoeModel": _LLAMA,
    "GptOssModel": _WINDOWS,
    "PhimoeModel": _WINDOWS,
    "GraniteMoeModel": replace(_GRANITE, feed_forward="block_sparse_moe"),
    "SmolLM3Model": Family(has_windows=True, rotates="use_rope"),
    "GlmModel": _GLM,
    "Glm4Model": replace(
        _GLM, after_attention="post_self_attn_layernorm", after_feed_forward="post_mlp_layernorm"
    ),
    "CohereModel": _COHERE,
    "Cohere2Model": replace(_COHERE, has_windows=True, rotates="sliding_window"),
    "Exaone4Model": replace(_OLMO, has_windows=True, rotates="is_sliding", rotates_without_window=True),
    "HunYuanDenseV1Model": Family(query_norm="query_layernorm", key_norm="key_layernorm", norm_last=True),
    "Starcoder2Model": Family(gate="c_fc", up=None, down="c_proj", function="act", has_windows=True),
    "Glm4MoeModel": _LLAMA,
    "DeepseekV3Model": _LATENTS,
    "Glm4MoeLiteModel": _LATENTS,
    "YoutuModel": _LATENTS,
    "Dots1Model": _WINDOWS,
    "SeedOssModel": _LLAMA,
    "Ernie4_5Model": Family(interleaved=True),
    "FalconModel": Family(
        layers="h",
        final_norm="ln_f",
        attention="self_attention",
        before_attention=("input_layernorm", "ln_attn"),
        before_feed_forward=("post_attention_layernorm", "ln_mlp"),
        inputs=("query_key_value",),
        fused_by="head",
        output="dense",
        scale="inv_norm_factor",
        gate="dense_h_to_4h",
        up=None,
        down="dense_4h_to_h",
        function="act",
        parallel="parallel_attn",
        copies_heads="new_decoder_architecture",
        needs=(("alibi", False, "linear biases of attention (ALiBi)"),),
    ),
    "OPTDecoder": Family(
        positions="embed_positions",
        skips_padding=True,
        final_norm="final_layer_norm",
        before_attention="self_attn_layer_norm",
        feed_forward=None,
        before_feed_forward="final_layer_norm",
        output="out_proj",
        gate="fc1",
        up=None,
        down="fc2",
        function="activation_fn",
        needs=(("do_layer_norm_before", True, "norms of the residual stream itself"),),
    ),
    "StableLmModel": Family(
        query_norm="q_layernorm", key_norm="k_layernorm", parallel="use_parallel_residual"
    ),
    "PhiModel": Family(
        final_norm="final_layernorm",
        before_feed_forward=None,
        query_norm="q_layernorm",
        key_norm="k_layernorm",
        output="dense",
        gate="fc1",
        up=None,
        down="fc2",
        function="activation_fn",
        parallel=True,
    ),
    "GPTNeoXModel": Family(
        final_norm="final_layer_norm",
        attention="attention",
        inputs=("query_key_value",),
        output="dense",
        gate="dense_h_to_4h",
        up=None,
        down="dense_4h_to_h",
        function="act",
        fused_by="head",
        parallel="use_parallel_residual",
    ),
    "GPT2Model": Family(
        layers="h",
        final_norm="ln_f",
        positions="wpe",
        attention="attn",
        before_attention="ln_1",
        before_feed_forward="ln_2",
        inputs=("c_attn",),
        output="c_proj",
        gate="c_fc",
        up=None,
        down="c_proj",
        function="act",
    ),
}

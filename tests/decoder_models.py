"""Small random models of every architecture that the decoder takes, quantized."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    Dots1Config,
    Ernie4_5Config,
    Exaone4Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Gemma4UnifiedTextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    GlmConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PhimoeConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
    YoutuConfig,
)

from qcore import recipes
from qcore.layers.modules import QuantExperts, QuantLinear
from qcore.quantization.convert import quantize
from qcore.runtime import detach

SIZES = dict(
    vocab_size=258,
    hidden_size=64,
    intermediate_size=120,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=256,
    eos_token_id=257,
)
FIVE = {**SIZES, "num_hidden_layers": 5}
ALONE = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
FALCON = dict({name: ALONE[name] for name in ALONE if name != "intermediate_size"}, ffn_hidden_size=120)
EXPERTS = dict(moe_intermediate_size=44, num_experts=8, num_experts_per_tok=3)
LATENTS = dict(kv_lora_rank=32, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16)
GROUPS = dict(moe_intermediate_size=44, n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3)
NO_PADDING = dict(pad_token_id=None)  # in place of a token beyond this vocabulary
PARTIAL = dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)
BY_LAYER = {
    "sliding_attention": dict(rope_type="default", rope_theta=100.0),
    "full_attention": dict(rope_type="linear", rope_theta=10000.0, factor=8.0),
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama3-rope": LlamaConfig(
        **SIZES,
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=10000.0,
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "one-key-value-head": LlamaConfig(
        **{**SIZES, "num_key_value_heads": 1, "num_attention_heads": 8, "hidden_size": 64}
    ),
    "mistral-window": MistralConfig(**SIZES, sliding_window=10),
    "ministral3": Ministral3Config(
        **SIZES,
        head_dim=16,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=10000.0,
            factor=16.0,
            original_max_position_embeddings=8,
            mscale_all_dim=1.0,
            mscale=1.0,
            beta_fast=32.0,
            beta_slow=1.0,
            llama_4_scaling_beta=0.5,
        ),
        **NO_PADDING,
    ),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "gemma": GemmaConfig(**SIZES, head_dim=32),
    "gemma2": Gemma2Config(
        **SIZES,
        head_dim=32,
        sliding_window=10,
        query_pre_attn_scalar=20,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        head_dim=32,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=BY_LAYER,
    ),
    "gemma3-windows-alone": Gemma3TextConfig(  # the config has angles for a kind of layers that there is not
        **SIZES,
        head_dim=32,
        sliding_window=10,
        layer_types=["sliding_attention"] * 2,
        rope_parameters=BY_LAYER,
    ),
    "gemma4": Gemma4TextConfig(
        **FIVE,
        head_dim=16,
        global_head_dim=32,
        hidden_size_per_layer_input=32,
        vocab_size_per_layer_input=258,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        final_logit_softcapping=3.0,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention", *["sliding_attention"] * 2, "full_attention"],
    ),
    "gemma4-experts": Gemma4TextConfig(
        **SIZES,
        head_dim=16,
        global_head_dim=32,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=3,
        moe_intermediate_size=44,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma4-unified": Gemma4UnifiedTextConfig(
        **SIZES,
        head_dim=16,
        global_head_dim=32,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": Phi3Config(**SIZES, sliding_window=10, **NO_PADDING, rope_parameters=PARTIAL),
    "olmo2": Olmo2Config(**SIZES),
    "olmo3": Olmo3Config(
        **SIZES,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=BY_LAYER,
        **NO_PADDING,
    ),
    "granite": GraniteConfig(
        **SIZES,
        embedding_multiplier=2.0,
        attention_multiplier=0.1,
        residual_multiplier=0.3,
        logits_scaling=5.0,
    ),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layers=[1, 0], **NO_PADDING),
    "glm": GlmConfig(**SIZES, head_dim=16, **NO_PADDING),
    "glm4": Glm4Config(**SIZES, head_dim=16, attention_bias=True, **NO_PADDING),
    "cohere": CohereConfig(**SIZES, use_qk_norm=True, logit_scale=0.3, **NO_PADDING),
    "cohere2": Cohere2Config(
        **SIZES, sliding_window=10, layer_types=["sliding_attention", "full_attention"], **NO_PADDING
    ),
    "seed-oss": SeedOssConfig(**SIZES, head_dim=16, pad_token_id=None),
    "ernie4.5": Ernie4_5Config(**SIZES, head_dim=16, use_bias=True),
    "exaone4": Exaone4Config(**SIZES, sliding_window=10, layer_types=["sliding_attention", "full_attention"]),
    "hunyuan": HunYuanDenseV1Config(**SIZES, head_dim=32, **NO_PADDING),
    "starcoder2": Starcoder2Config(**SIZES, sliding_window=10),
    "stablelm": StableLmConfig(**SIZES, use_qkv_bias=True),
    "stablelm-head-norms": StableLmConfig(**SIZES, qk_layernorm=True),
    "stablelm-parallel": StableLmConfig(**SIZES, use_parallel_residual=True),
    "phi": PhiConfig(**SIZES, qk_layernorm=True),
    "gpt-neox": GPTNeoXConfig(**ALONE),
    "gpt-neox-sequential": GPTNeoXConfig(**ALONE, use_parallel_residual=False, hidden_act="relu"),
    "gpt2": GPT2Config(**ALONE),
    "falcon": FalconConfig(**FALCON),
    "falcon-sequential": FalconConfig(**FALCON, multi_query=False, parallel_attn=False, bias=True),
    "falcon-groups": FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "opt": OPTConfig(**ALONE, ffn_dim=120),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, sliding_window=10),
    "qwen2-moe": Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=72),
    "qwen3-moe": Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=32, norm_topk_prob=True, mlp_only_layers=[1]),
    "deepseek-v3": DeepseekV3Config(
        **ALONE,
        **LATENTS,
        **GROUPS,
        num_key_value_heads=4,
        q_lora_rank=24,
        first_k_dense_replace=1,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=10000.0,
            factor=4.0,
            original_max_position_embeddings=128,
            mscale=1.0,
            mscale_all_dim=0.5,
        ),
    ),
    "glm4-moe-lite": Glm4MoeLiteConfig(
        **ALONE,
        **LATENTS,
        **GROUPS,
        num_key_value_heads=4,
        q_lora_rank=24,
        mlp_layer_types=["dense", "sparse"],
    ),
    "youtu": YoutuConfig(**ALONE, **LATENTS, num_key_value_heads=4, q_lora_rank=None, rope_interleave=False),
    "dots1": Dots1Config(
        **SIZES,
        moe_intermediate_size=44,
        n_routed_experts=8,
        n_shared_experts=2,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "glm4-moe": Glm4MoeConfig(
        **SIZES,
        head_dim=16,
        use_qk_norm=True,
        moe_intermediate_size=44,
        n_routed_experts=8,
        n_group=4,
        topk_group=2,
        num_experts_per_tok=3,
        routed_scaling_factor=2.5,
        first_k_dense_replace=1,
        **NO_PADDING,
    ),
    "olmoe": OlmoeConfig(**SIZES, num_experts=8, num_experts_per_tok=3, **NO_PADDING),
    "gpt-oss": GptOssConfig(
        **SIZES,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention"],
        **NO_PADDING,
    ),
    "phimoe": PhimoeConfig(**SIZES, num_local_experts=4, attention_bias=True, lm_head_bias=True),
    "granite-moe": GraniteMoeConfig(
        **SIZES,
        num_local_experts=4,
        num_experts_per_tok=2,
        embedding_multiplier=2.0,
        attention_multiplier=0.1,
        residual_multiplier=0.3,
        logits_scaling=5.0,
    ),
}
# all angles change once a call goes beyond 32 positions, so the split into calls matters
LONG_ROPE = Phi3Config(
    **{**SIZES, "max_position_embeddings": 128},
    **NO_PADDING,
    original_max_position_embeddings=32,
    rope_parameters=dict(
        rope_type="longrope",
        rope_theta=10000.0,
        partial_rotary_factor=0.5,
        original_max_position_embeddings=32,
        short_factor=[1.0, 1.1, 1.2, 1.3],
        long_factor=[1.0, 2.0, 4.0, 8.0],
    ),
)
RECIPES = ("int4-g32", "int8", "int8-dynamic", "int4-g64-dq", "nf4-g64", "kmeans4", "int3", "int4-g32-head8")


def make(config: str, recipe: str, activations: str | None = None) -> torch.nn.Module:
    """A quantized model whose norms and biases are not the ones and zeros that they start as."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[config]), dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif "embed" not in name:
            parameter.mul_(4)  # away from logits that are all alike
    stored = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in stored:  # factors of layers, corrections of routers
            buffer.add_(0.2 * torch.randn_like(buffer))
    quantize(model, recipes.parse(recipe))
    for module in model.modules():
        if activations and isinstance(module, QuantLinear | QuantExperts):
            module.activations = activations
    return model


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 258, (count,), generator=torch.Generator().manual_seed(seed))


def detached(model: torch.nn.Module) -> torch.nn.Module:
    """Return the same model without the native step."""
    twin = copy.deepcopy(model)
    detach(twin)
    return twin


def close(expected: torch.Tensor, share: float = 2e-5) -> dict:
    return dict(rtol=0, atol=share * expected.abs().max().item())

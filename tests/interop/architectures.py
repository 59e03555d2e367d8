"""Tiny models of the architectures of the matrix, and qcore's own logits."""

from copy import deepcopy

import numpy as np
import tiny
import torch
from matrix import COLUMNS
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

# Widths that every target can hold: groups of 32, 64 and 128 everywhere, 256 inputs (a super-block of GGUF)
# in `down_proj`, and heads of 32.
SIZES = dict(
    vocab_size=tiny.VOCABULARY,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=256,
    eos_token_id=257,
    pad_token_id=None,
)
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-bias": LlamaConfig(**SIZES, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True, head_dim=32),
    "gemma": GemmaConfig(**SIZES, head_dim=32),
    "mixtral": MixtralConfig(**SIZES, tie_word_embeddings=False, num_local_experts=4, num_experts_per_tok=2),
    "gpt2": GPT2Config(
        vocab_size=tiny.VOCABULARY,
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=256,
        eos_token_id=257,
    ),
    "llama3": LlamaConfig(
        **SIZES,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral": MistralConfig(**SIZES, head_dim=32, sliding_window=None),
    "qwen2-moe": Qwen2MoeConfig(
        **SIZES,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=128,
        num_experts=8,
        num_experts_per_tok=2,
    ),
    "qwen3-moe": Qwen3MoeConfig(
        **SIZES,
        moe_intermediate_size=64,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        head_dim=32,
    ),
    "olmoe": OlmoeConfig(**SIZES | {"num_key_value_heads": 4}, num_experts=4, num_experts_per_tok=2),
    "gemma2": Gemma2Config(**SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=16),
    "gemma3": Gemma3TextConfig(
        **SIZES | {"num_hidden_layers": 7}, head_dim=32, query_pre_attn_scalar=32, sliding_window=16
    ),
    "phi3": Phi3Config(**SIZES),
}
assert set(CONFIGS) == set(COLUMNS)


def make(architecture: str) -> torch.nn.Module:
    """Return a random model whose norms and biases are not the ones and zeros that they start as, with logits
    as far apart as a trained model's."""
    torch.manual_seed(0)
    config = deepcopy(CONFIGS[architecture])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif not any(part in name for part in ("embed", "wte", "wpe")):
            parameter.mul_(4)
    return model


def exact_logits(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """Return the logits (T, V) of a model in memory."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()

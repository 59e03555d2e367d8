"""Small random models of every architecture that the decoder takes, quantized."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from qcore import recipes
from qcore.layers.modules import QuantLinear
from qcore.quantization.convert import quantize

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
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "gemma": GemmaConfig(**SIZES, head_dim=32),
}
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
    quantize(model, recipes.parse(recipe))
    for module in model.modules():
        if activations and isinstance(module, QuantLinear):
            module.activations = activations
    return model


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 258, (count,), generator=torch.Generator().manual_seed(seed))

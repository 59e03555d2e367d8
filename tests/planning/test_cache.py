"""Bytes of the key-value cache against the caches that real (tiny) models fill."""

from copy import deepcopy

import pytest
import tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DynamicCache,
    Gemma3TextConfig,
    MistralConfig,
    Qwen3MoeConfig,
)

from qcore.base.errors import InputError
from qcore.planning import cache
from tests import zoo

COMMON = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=258
)
CONFIGS = {
    **tiny.CONFIGS,
    "sliding": MistralConfig(num_key_value_heads=2, sliding_window=8, **COMMON),
    "sliding and full": Gemma3TextConfig(
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **COMMON,
    ),
    "latent": DeepseekV3Config(
        num_key_value_heads=4,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        moe_intermediate_size=32,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        **COMMON,
    ),
    "wide heads": Qwen3MoeConfig(
        num_key_value_heads=2,
        head_dim=24,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        **COMMON,
    ),
}


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize("tokens", [5, 24])
@pytest.mark.parametrize("kind", CONFIGS)
def test_bytes_are_those_of_the_models_own_cache(kind, tokens, users):
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[kind]), dtype=torch.float32).eval()
    held = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.arange(tokens).expand(users, -1), cache=held, use_cache=True)
    layers = cache.layout(model)
    real = sum(part.numel() * part.itemsize for layer in held.layers for part in (layer.keys, layer.values))
    assert cache.kv_bytes(layers, tokens, users) == real
    assert cache.kv_bytes(layers, tokens, users, cache.FORMATS["fp16"]) == real / 2


def test_by_hand():
    full = cache.CacheLayer("full", 2 * 8 * 128)
    assert cache.kv_bytes((full,) * 32, 4096, 1, cache.FORMATS["fp16"]) == 32 * 2 * 8 * 128 * 4096 * 2
    window = cache.CacheLayer("sliding", 10, 99)
    assert cache.kv_bytes((full, window, cache.CacheLayer("none", 0)), 1000) == 4 * (2048 * 1000 + 10 * 99)


def test_layers_in_words():
    layers = (
        cache.CacheLayer("full", 64),
        cache.CacheLayer("sliding", 64, 1023),
        cache.CacheLayer("full", 64),
    )
    assert (
        cache.describe(layers)
        == "2 layers of 64 numbers per token, 1 sliding layers of 64 numbers per token, the last 1,023 tokens"
    )


def test_an_unknown_format_is_answered_with_near_ones():
    with pytest.raises(InputError, match="fp16"):
        cache.format_named("fp61")


def test_states_that_cannot_be_found_are_left_out_with_a_word(caplog):
    """Qwen4's layers choose tokens by their values, which the meta device does not have."""
    layers = cache.layout(zoo.model("qwen4_exp_text"))
    assert "states of Qwen4ExpForCausalLM are left out" in caplog.text
    assert {layer.kind for layer in layers} == {"none", "full"}

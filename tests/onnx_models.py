"""Tiny models of one block, exported once for each session of tests, because an export takes seconds whatever
the model's size."""

from copy import deepcopy
from functools import cache

import tiny
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

COMMON = dict(
    vocab_size=tiny.VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=256,
    eos_token_id=257,
    pad_token_id=None,
)
QWEN = Qwen2Config(**COMMON, tie_word_embeddings=True)  # with biases, which its kind has in q, k and v


@cache
def _made(kind: str):
    config = QWEN if kind == "qwen" else deepcopy(tiny.CONFIGS[kind])
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            elif "norm" in name or "ln_" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.requires_grad_(False)


def made(kind: str):
    """A fresh model of one block whose predictions depend on the context: a kind of `tiny`, or "qwen" (tied,
    with biases)."""
    return deepcopy(_made(kind))


IDS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))

"""Saved models of a few thousand weights, for mutations of their manifests."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from qcore.library import safetensors
from qcore.quantization.convert import quantize
from qcore.recipes import parse

RECIPES = ("int4-g64-head8", "nf4-g64-dq", "bf16")


def saved_models(folder: Path) -> dict[str, Path]:
    """Return folders of a tiny model, saved in each of `RECIPES`."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=32,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    made = {}
    for name in RECIPES:
        torch.manual_seed(0)
        model, recipe = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), parse(name)
        made[name] = folder / name
        safetensors.save(model, None, recipe, quantize(model, recipe), made[name])
    return made

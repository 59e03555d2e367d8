"""Tiny, randomly initialised models of each architecture family, saved as real checkpoint folders, made in
milliseconds."""

from copy import deepcopy
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

VOCABULARY = 258  # the 256 bytes, <bos> and <eos>


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: any text round-trips, and its length in tokens is its length in bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)} | {"<bos>": 256, "<eos>": 257}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>")


_COMMON = dict(vocab_size=VOCABULARY, bos_token_id=256, eos_token_id=257, pad_token_id=None)
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **_COMMON,
    ),
    "llama-tied": LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **_COMMON,
    ),
    "gpt2": GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=512, **_COMMON),
    "moe": MixtralConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **_COMMON,
    ),
}


def model(kind: str, seed: int = 0) -> torch.nn.Module:
    """A fresh fp32 model in evaluation mode: "llama", "llama-tied", "gpt2" (Conv1D) or "moe" (fused 3-D
    experts)."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(deepcopy(CONFIGS[kind]), dtype=torch.float32).eval()


def sharp(kind: str, seed: int = 0) -> torch.nn.Module:
    """`model(kind)` with larger weights, so that its predictions depend on the context as a trained model's
    do."""
    sharpened = model(kind, seed)
    with torch.no_grad():
        for parameter in sharpened.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return sharpened


def checkpoint(kind: str, folder: Path, seed: int = 0) -> Path:
    """Save `model(kind)` and the byte tokenizer into `folder`, as a hub download would look, and return
    it."""
    model(kind, seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder

"""A Llama of four narrow blocks, and random bytes as its calibration text."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from qcore.quantization.calibration import Calibration

COMMON = dict(
    vocab_size=258,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=128,
    pad_token_id=None,
)


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(**COMMON, intermediate_size=48)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def ids(rows: int = 3, columns: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (rows, columns), generator=torch.Generator().manual_seed(0))


def text() -> Calibration:
    return Calibration("random bytes", "0" * 64, ids())

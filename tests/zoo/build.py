"""Tiny checkpoints of every causal language model class that transformers registers, with random weights."""

import zlib
from copy import deepcopy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.tiny import tokenizer
from tests.zoo.overrides import IMPOSSIBLE
from tests.zoo.shrink import Shape, config_of

LARGEST = 2_500_000  # parameters
WRAPPED = ":wrapped"  # the suffix of a name that means the class for images and text


def names() -> list[str]:
    """Return the model types with a causal language model class that transformers can build, sorted."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(IMPOSSIBLE))


def wrapped_names() -> list[str]:
    """Return the names of the classes for images and text, such as "mistral3:wrapped", sorted."""
    return sorted(f"{name}{WRAPPED}" for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def model(name: str, seed: int = 0, shape: Shape | None = None) -> PreTrainedModel:
    """Return a tiny random model of the architecture `name`, one of `names()` or `wrapped_names()`, in the
    sizes of `shape` (None: odd ones), in evaluation mode and in the dtype of its checkpoint."""
    model_type = name.removesuffix(WRAPPED)
    family = AutoModelForImageTextToText if name.endswith(WRAPPED) else AutoModelForCausalLM
    config = config_of(model_type, shape)
    with torch.device("meta"):
        outline = family.from_config(deepcopy(config), dtype=torch.float32)
    size = sum(parameter.numel() for parameter in outline.parameters())
    if size > LARGEST:
        raise ValueError(f"{name} has {size / 1e6:.1f} M parameters. Shrink what is large, in overrides.py.")
    torch.manual_seed(seed)
    built = family.from_config(config, dtype=torch.float32).eval()
    _scale(built, seed)
    return built.to(dtype_of(name))


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of the checkpoint `name`: bfloat16 for one in three."""
    return torch.bfloat16 if zlib.crc32(f"{name} dtype".encode()) % 3 == 0 else torch.float32


def build(name: str, folder: str | Path, seed: int = 0, shape: Shape | None = None) -> Path:
    """Save `model(…)` with the byte tokenizer into `folder` as a hub download would look, in several files
    for one architecture in four, and return the folder."""
    folder = Path(folder)
    built = model(name, seed, shape)
    sharded = zlib.crc32(f"{name} shards".encode()) % 4 == 0
    built.save_pretrained(folder, max_shard_size="150KB" if sharded else "5GB")
    tokenizer().save_pretrained(folder)
    return folder


def _scale(built: PreTrainedModel, seed: int) -> None:
    """Move the weights away from their initial values, so that a lost vector shows: matrices
    are four times as large, and vectors have noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in built.parameters():
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            if tensor.ndim > 1 and tensor.std() < 0.05:
                tensor.mul_(4)
            elif tensor.ndim == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))

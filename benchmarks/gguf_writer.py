"""Write a model as a GGUF file in float32 for llama.cpp to quantize: the same weights that qcore quantizes,
with the names, settings and row order of qcore's own export.

The file has no tokenizer ("none"), because it only receives token ids. `qcore export` needs a checkpoint with
one; the models here are in memory, and some are random.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers.pytorch_utils import Conv1D

from qcore.interop import gguf_metadata
from qcore.interop.gguf_names import Names, Place, architecture
from qcore.interop.gguf_writer import Field, GgufFile, Stored, header

FLOAT32 = 0  # ggml's number of the type


def places(model: torch.nn.Module) -> Iterator[tuple[Place, torch.Tensor]]:
    """Return the tensors of the file with the parameters that they are made from, without a tied head.

    Raise `ValueError` for GPT-2's transposed layers, and for a weight without a name, so that none is lost
    silently.
    """
    names = Names(model.config)
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise ValueError(f"layers of {model.config.model_type} are transposed, which is not written here")
    for full, parameter in model.named_parameters():  # shared ones come once
        for place in names.places(full, tuple(parameter.shape)):
            yield place, parameter.detach()


def tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Return (name in the file, tensor in float32) for every weight of `model`."""
    for place, parameter in places(model):
        experts = parameter.ndim == 3
        picked = torch.stack([*map(place.pick, parameter)]) if experts else place.pick(parameter)
        yield place.name, picked.float() + place.shift
    yield from gguf_metadata.extra_tensors(model.config).items()


def write(model: torch.nn.Module, path: Path) -> None:
    """Write `model` to `path`. Raise `ValueError` as `places` does."""
    fields = [
        Field("general.architecture", "str", architecture(model.config.model_type).name),
        Field("general.file_type", "u32", FLOAT32),
        *gguf_metadata.fields(model.config),
        Field("tokenizer.ggml.model", "str", "none"),
    ]
    stored = [
        Stored(name, tuple(tensor.shape), FLOAT32, 4 * tensor.numel()) for name, tensor in tensors(model)
    ]
    file = GgufFile(path, header(fields, stored), stored)
    for name, tensor in tensors(model):
        file.write(name, tensor)
    file.close()

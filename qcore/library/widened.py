"""Originals in low precision: 8-bit floats (DeepSeek-V3, …) and MXFP4 (gpt-oss), the form in which some
models are published. Dequantized to safetensors once, keyed by the files' state, they are originals for
recipes like any other.

Their values are kept exactly: in bf16 if it holds every one of them, otherwise in fp32.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qcore.base.errors import InputError, TooLargeError
from qcore.base.home import build_folder, check_space, home
from qcore.base.progress import Progress
from qcore.base.transformers_internals import quiet
from qcore.measurement.memory import available_bytes
from qcore.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LARGEST = 100 << 20  # bytes of a file that is copied; larger ones are weights
_GIB = 1 << 30


def prepare(checkpoint: Checkpoint, progress: Progress | None = None) -> tuple[Path, str]:
    """Return the folder with the values of `checkpoint`, which another project stored in low precision, and a
    sentence about it. Raise `InputError` if it cannot be read, or does not fit into memory."""
    key = hashlib.sha256(f"{checkpoint.digest} {checkpoint.stamp}".encode())
    for path in _small_files(checkpoint.folder):
        key.update(path.read_bytes())
    final = home() / "models" / f"{checkpoint.foreign}-{key.hexdigest()[:24]}"
    build_folder(final, lambda folder: convert(checkpoint, folder, progress), progress=progress)
    return final, (
        f"Stored as {checkpoint.foreign} and dequantized: its weights already contain that loss, and results "
        "here show the additional loss of a recipe."
    )


def convert(checkpoint: Checkpoint, folder: Path, progress: Progress | None = None) -> None:
    """Write the values of `checkpoint` and its small files into `folder`."""
    from qcore.library import foreign
    from qcore.models.assembly import meta_model

    size = 4 * sum(parameter.numel() for parameter in meta_model(checkpoint).parameters())
    if size > (available := available_bytes()):
        raise TooLargeError(
            f"Dequantizing {checkpoint.name} takes {size / _GIB:.1f} GiB, and {available / _GIB:.1f} GiB are "
            "available. Use a version of the model in 16 bits, or a machine with more memory."
        )
    check_space(folder, size, f"Dequantizing {checkpoint.name}")
    model: Any = foreign.values(checkpoint, progress)
    if all(map(_fits_bf16, model.parameters())):
        model.to(torch.bfloat16)
    _save(model, folder)
    for path in _small_files(checkpoint.folder):
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _small_files(folder: Path) -> list[Path]:
    """Return the files beside the weights, such as those of the tokenizer."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    skipped = (".safetensors", ".index.json")
    return [path for path in files if not path.name.endswith(skipped) and path.stat().st_size <= _LARGEST]


def _fits_bf16(tensor: torch.Tensor) -> bool:
    return torch.equal(tensor.to(torch.bfloat16).to(tensor.dtype), tensor)


def _save(model: PreTrainedModel, folder: Path) -> None:
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    with quiet():
        model.save_pretrained(folder, max_shard_size="5GB")
    if "quantization_config" in (folder / "config.json").read_text():
        raise InputError("The config of a dequantized model still names its quantization.")

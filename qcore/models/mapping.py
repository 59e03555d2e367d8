"""Stored tensors as torch tensors without reading them: one private memory map for each tensor.

A map of its own lets go of its pages as soon as its tensor is freed. One map for a whole file, as the
safetensors library makes it, would keep every page that was ever read for as long as a single tensor of the
file lives, so a model whose linear layers were quantized would still seem to hold all of its fp32 weights.
The map is copy-on-write: changing such a tensor never changes the file.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.base.tensor_file import TORCH_NAMES
from qcore.models.checkpoint import Checkpoint
from qcore.models.headers import TensorInfo

if TYPE_CHECKING:
    import torch


def read_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return all stored tensors by name, mapped: no memory is taken until they are read. Raise `InputError`
    if a file changed or went away."""
    files: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in checkpoint.tensors.items():
        files.setdefault(tensor.file, {})[name] = tensor
    tensors: dict[str, torch.Tensor] = {}
    for file, members in files.items():
        try:
            tensors |= read_file(checkpoint.folder / file, members)
        except OSError as error:
            raise InputError(f"{file} of {checkpoint.name} cannot be read any more: {error}.") from error
    return tensors


def read_file(path: Path, tensors: dict[str, TensorInfo]) -> dict[str, torch.Tensor]:
    """Return the `tensors` of one file, mapped. Raise `OSError` if it cannot be read or is shorter than they
    say."""
    try:
        with path.open("rb") as opened:
            return {name: _map(opened.fileno(), tensor) for name, tensor in tensors.items()}
    except ValueError as error:  # what mmap calls a file that is too short
        raise OSError(str(error)) from error


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Return one stored tensor, mapped; its pages are let go with it. For models too large to map whole.
    Raise `InputError` as above."""
    tensor = checkpoint.tensors[name]
    try:
        return read_file(checkpoint.folder / tensor.file, {name: tensor})[name]
    except OSError as error:
        raise InputError(f"{tensor.file} of {checkpoint.name} cannot be read any more: {error}.") from error


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype for a safetensors one. Raise `InputError` for the packed ones, which hold no
    plain numbers."""
    import torch

    if name not in TORCH_NAMES:
        raise InputError(f"{name} weights are quantized already, so they cannot be read as plain numbers.")
    return getattr(torch, TORCH_NAMES[name])


def _map(file: int, tensor: TensorInfo) -> torch.Tensor:
    import torch

    dtype = torch_dtype(tensor.dtype)
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=dtype)
    ahead = tensor.start % mmap.ALLOCATIONGRANULARITY  # maps begin at the start of a page
    mapped = mmap.mmap(file, ahead + tensor.nbytes, access=mmap.ACCESS_COPY, offset=tensor.start - ahead)
    if (
        tensor.start % dtype.itemsize
    ):  # only files written by hand: such an address is slow or forbidden, so copy
        return torch.frombuffer(bytearray(mapped[ahead:]), dtype=dtype).view(tensor.shape)
    return torch.frombuffer(mapped, dtype=dtype, offset=ahead).view(tensor.shape)

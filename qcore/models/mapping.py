"""Stored tensors as memory-mapped torch tensors, with one private map per tensor.

A map per tensor releases its pages as soon as the tensor is freed. One map per file, as in the safetensors
library, would keep all pages read until the last tensor of the file is freed, so a quantized model would
still appear to hold its fp32 weights. The maps are copy-on-write: writing to a tensor never changes the file.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.base.tensor_file import ALIGNMENT, TORCH_NAMES
from qcore.models.checkpoint import Checkpoint
from qcore.models.headers import TensorInfo

if TYPE_CHECKING:
    from io import BufferedReader

    import torch


def read_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return all stored tensors by name, mapped: they take no memory until they are read. Raise `InputError`
    if a file was changed or removed."""
    files: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in checkpoint.tensors.items():
        files.setdefault(tensor.file, {})[name] = tensor
    tensors: dict[str, torch.Tensor] = {}
    for file, members in files.items():
        try:
            tensors |= read_file(checkpoint.folder / file, members)
        except OSError as error:
            raise InputError(f"{file} of {checkpoint.name} can no longer be read: {error}.") from error
    return tensors


def read_file(path: Path, tensors: dict[str, TensorInfo], *, align: bool = False) -> dict[str, torch.Tensor]:
    """Return the `tensors` of one file, mapped. With `align`, tensors that `aligned` would copy are read
    instead: while a map is copied, memory holds its values twice. Raise `OSError` if the file cannot be read
    or is too short."""
    try:
        with path.open("rb") as opened:
            return {
                name: _read(opened, tensor)
                if align and tensor.start % ALIGNMENT
                else _map(opened.fileno(), tensor)
                for name, tensor in tensors.items()
            }
    except ValueError as error:  # mmap's error for a file that is too short
        raise OSError(str(error)) from error


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Return one stored tensor, mapped; its pages are released with it. For models too large to map as a
    whole. Raise `InputError` as `read_tensors`."""
    tensor = checkpoint.tensors[name]
    try:
        return read_file(checkpoint.folder / tensor.file, {name: tensor})[name]
    except OSError as error:
        raise InputError(f"{tensor.file} of {checkpoint.name} can no longer be read: {error}.") from error


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype. Raise `InputError` for packed dtypes, which hold no
    plain numbers."""
    import torch

    if name not in TORCH_NAMES:
        raise InputError(f"{name} weights are quantized already, so they cannot be read as plain numbers.")
    return getattr(torch, TORCH_NAMES[name])


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor`, copied if its mapped address is not aligned: matrix products would round their last
    bit differently there."""
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _read(file: BufferedReader, tensor: TensorInfo) -> torch.Tensor:
    import torch

    values = torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype))
    if values.nbytes != tensor.nbytes:
        raise ValueError(f"{tensor.nbytes} bytes do not hold {tensor.shape}")
    file.seek(tensor.start)
    if file.readinto(values.view(-1).view(torch.uint8).numpy().data) < tensor.nbytes:
        raise ValueError("the file ends within the tensor")
    return values


def _map(file: int, tensor: TensorInfo) -> torch.Tensor:
    import torch

    dtype = torch_dtype(tensor.dtype)
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=dtype)
    ahead = tensor.start % mmap.ALLOCATIONGRANULARITY  # maps begin at the start of a page
    mapped = mmap.mmap(file, ahead + tensor.nbytes, access=mmap.ACCESS_COPY, offset=tensor.start - ahead)
    if (
        tensor.start % dtype.itemsize
    ):  # only in files written by hand: copy, because unaligned access is slow or forbidden
        return torch.frombuffer(bytearray(mapped[ahead:]), dtype=dtype).view(tensor.shape)
    return torch.frombuffer(mapped, dtype=dtype, offset=ahead).view(tensor.shape)

"""Write tensors as a safetensors file in which they lie at multiples of 64 bytes, so that a reader can use
them where they are.

The safetensors library aligns to 8 bytes, and a matrix product at such an address rounds its last bit
differently; a reader would have to copy. Here the header is padded, tensors of a size that is a multiple of
64 bytes come first, and the others, few and small, last.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from qcore.models.mapping import stored_name

ALIGNMENT = 64  # bytes, as torch allocates


def write(tensors: dict[str, torch.Tensor], path: Path) -> str:
    """Write contiguous CPU `tensors`, by name, to `path`, and return the SHA-256 of the file. Nothing is
    copied in memory."""
    ordered = sorted(
        tensors.items(), key=lambda item: (item[1].nbytes % ALIGNMENT > 0, -item[1].dtype.itemsize, item[0])
    )
    start = header((name, tensor.dtype, tensor.shape, tensor.nbytes) for name, tensor in ordered)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (start, *(_bytes(tensor) for _, tensor in ordered if tensor.nbytes)):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def header(tensors: Iterable[tuple[str, torch.dtype, Sequence[int], int]]) -> bytes:
    """The beginning of the file for tensors (name, dtype, shape, bytes) that follow in this order; a multiple
    of 64 bytes."""
    entries, place = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, nbytes in tensors:
        entries[name] = {
            "dtype": stored_name(dtype),
            "shape": list(shape),
            "data_offsets": [place, place + nbytes],
        }
        place += nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())

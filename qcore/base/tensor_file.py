"""The writer of safetensors files.

    TensorFile     the tensors' names, dtypes and shapes are known; their data is written in pieces
    write          all tensors are in memory

Data begins at a multiple of 64 bytes, so that a reader can use tensors where they are mapped: the safetensors
library aligns to 8 bytes only, and a matrix product at such an address rounds its last bit differently.
Tensors whose size is a multiple of 64 bytes must come first to keep that alignment; `write` orders them so.

A file has a temporary name until it is complete and flushed to the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.files import sync_folder

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64  # bytes, as torch allocates
TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}  # safetensors' name -> torch's
_STORED = {torch_name: name for name, torch_name in TORCH_NAMES.items()}


def stored_name(dtype: torch.dtype) -> str:
    """Return safetensors' name of a dtype: "F32" for `torch.float32`. Raise `KeyError` for a dtype that such
    files do not have."""
    return _STORED[str(dtype).removeprefix("torch.")]


@dataclass(frozen=True)
class Piece:
    """One tensor of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """Write the tensors `pieces`, in this order, to `path`: `write` their data, then `close` or `discard`.

    The data of one tensor comes in order; different tensors may take turns. `metadata` is kept in the header.
    Raise `OSError` if a write fails.
    """

    def __init__(self, path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str] | None = None):
        self.path = path
        self.sha256: str | None = None  # set by `close` if the data came in the order of the file
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._next: dict[str, int] = {}  # write position of each tensor
        self._end: dict[str, int] = {}
        start = _header(pieces, metadata or {})
        place = len(start)
        for piece in pieces:
            self._next[piece.name], place = place, place + piece.nbytes
            self._end[piece.name] = place
        self._hash, self._hashed = hashlib.sha256(start), len(start)
        self._place = len(start)  # position of the file's cursor
        self._file = self._temporary.open("xb", buffering=0)
        try:
            self._put(memoryview(start))
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, data: torch.Tensor) -> None:
        """Append `data`, of any shape, to the tensor `name`. Raise `ValueError` if that makes it too
        long."""
        import torch

        view = data.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        place = self._next[name]
        if place + len(view) > self._end[name]:
            raise ValueError(f"{name} is longer than its header says")
        if place == self._hashed:
            self._hash.update(view)
            self._hashed += len(view)
        if place != self._place:
            self._file.seek(place)
        self._put(view)
        self._next[name] = self._place = place + len(view)

    def write_back(self) -> None:
        """Start write-back of the file's dirty pages, and drop the written ones from the page cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> str | None:
        """Flush the file to the disk, give it its final name, and return its SHA-256 if known. Raise
        `ValueError` and remove the file if a tensor is too short."""
        try:
            if short := [name for name, place in self._next.items() if place != self._end[name]]:
                raise ValueError(f"{short[0]} is shorter than its header says")
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        except BaseException:
            self.discard()
            raise
        sync_folder(self.path.parent)
        if self._hashed == max(self._end.values(), default=self._hashed):
            self.sha256 = self._hash.hexdigest()
        return self.sha256

    def discard(self) -> None:
        """Remove the unfinished file. Does nothing after `close`."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _put(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]


def write(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> str:
    """Write `tensors` to `path` and return the SHA-256 of the file. Contiguous CPU tensors are not copied in
    memory. Raise `OSError`."""
    ordered = sorted(
        tensors.items(), key=lambda item: (item[1].nbytes % ALIGNMENT > 0, -item[1].dtype.itemsize, item[0])
    )
    pieces = [Piece(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered]
    file = TensorFile(path, pieces, metadata)
    try:
        for name, tensor in ordered:
            file.write(name, tensor)
        digest = file.close()
    except BaseException:
        file.discard()
        raise
    assert digest is not None  # everything was written in order
    return digest


def _header(pieces: Sequence[Piece], metadata: Mapping[str, str]) -> bytes:
    """Return the beginning of the file; a multiple of 64 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    place = 0
    for piece in pieces:
        entries[piece.name] = {
            "dtype": stored_name(piece.dtype),
            "shape": list(piece.shape),
            "data_offsets": [place, place + piece.nbytes],
        }
        place += piece.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text

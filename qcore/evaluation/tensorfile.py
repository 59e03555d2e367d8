"""Write a safetensors file row by row: the header first, because the shapes are known, then the data as it
comes.

The format (8 bytes of header length, a JSON header, the tensors' bytes) is that of the safetensors library;
see its documentation. A file is written under a temporary name and renamed when complete.
"""

import json
import os
from pathlib import Path

import torch

from qcore.base.errors import InputError

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class TensorFile:
    """`start` with a layout, `write` each tensor's rows in order, `close`."""

    def __init__(self, path: Path):
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._file = None
        self._next: dict[str, int] = {}
        self._end: dict[str, int] = {}

    @property
    def started(self) -> bool:
        """Has the header been written?"""
        return self._file is not None

    def start(self, layout: Layout, metadata: dict[str, str]) -> None:
        """Write the header. Raises `InputError` if the folder is missing or cannot be written to."""
        header, offset = {"__metadata__": metadata}, 0
        for name, (dtype, shape) in layout.items():
            size = dtype.itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": (offset, offset + size)}
            self._next[name], self._end[name] = offset, offset + size
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (
            -len(text) % 64 + 56
        )  # data begins at a multiple of 64, which suits vector loads from the mapped file
        try:
            self._file = self._temporary.open("wb")
        except OSError as error:
            raise InputError(f"Cannot write {self.path}: {error.strerror}.") from error
        self._file.write(len(text).to_bytes(8, "little") + text)
        base = 8 + len(text)
        self._next = {name: base + place for name, place in self._next.items()}
        self._end = {name: base + place for name, place in self._end.items()}

    def write(self, name: str, rows: torch.Tensor) -> None:
        """Append `rows` to the tensor `name`."""
        data = rows.detach().cpu().contiguous().view(torch.uint8).numpy().data
        if self._next[name] + len(data.cast("B")) > self._end[name]:
            raise ValueError(f"{name} is longer than the header says")
        self._file.seek(self._next[name])
        self._file.write(data)
        self._next[name] += data.nbytes

    def close(self) -> None:
        """Flush, and give the file its name. Raises `ValueError` if a tensor is incomplete."""
        if self._next != self._end:
            raise ValueError("a tensor is shorter than the header says")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)

    def discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        if self._file:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

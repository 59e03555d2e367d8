"""Write a GGUF file tensor by tensor: the header first, because names, types and shapes are known before the
data.

    "GGUF" version tensors fields · fields of (key, type, value) · tensors of (name, shape, type, offset) ·
    padding · data of each tensor, each from a multiple of 32 bytes

Shapes are stored innermost first. Source: the specification in ggml's `docs/gguf.md`.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

VERSION, ALIGNMENT = 3, 32
_KINDS = {
    "u8": (0, "<B"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "bool": (7, "<?"),
    "u64": (10, "<Q"),
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Field:
    """A setting: its `key`, its `kind` ("u8", "u32", "i32", "f32", "bool", "u64", "str", or one of these in
    brackets for a list), and its value. Strings may be bytes, because some tokens are not UTF-8."""

    key: str
    kind: str
    value: Any

    def encode(self) -> bytes:
        """Return the field as stored."""
        if not self.kind.startswith("["):
            return _text(self.key) + struct.pack("<I", _number(self.kind)) + _values(self.kind, [self.value])
        inner = self.kind.strip("[]")
        start = struct.pack("<IIQ", _ARRAY, _number(inner), len(self.value))
        return _text(self.key) + start + _values(inner, self.value)


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: `shape` as torch has it (outermost first), ggml's number of its `type`, bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    nbytes: int


def header(fields: Sequence[Field], tensors: Sequence[Stored]) -> bytes:
    """Return the beginning of the file, up to the data of the first tensor."""
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(fields))]
    parts += [field.encode() for field in fields]
    place = 0
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        parts.append(_text(tensor.name) + shape + struct.pack("<IQ", tensor.type, place))
        place += _padded(tensor.nbytes)
    text = b"".join(parts)
    return text + bytes(_padded(len(text)) - len(text))


def total_bytes(start: bytes, tensors: Sequence[Stored]) -> int:
    """Return the size of the whole file whose header is `start`."""
    return len(start) + sum(_padded(tensor.nbytes) for tensor in tensors)


class GgufFile:
    """A file that is being written at `path`: `write` the data of the tensors, then `close`.

    The data of one tensor comes in order; different tensors may take turns. With `finished`, the names of the
    tensors that an earlier process wrote completely, the file is continued. Raise `OSError`, and `ValueError`
    for data that does not fit the header.
    """

    def __init__(
        self, path: Path, start: bytes, tensors: Sequence[Stored], finished: frozenset[str] = frozenset()
    ):
        self.sha256: str | None = None  # set by `close` if all data came in the order of the file
        self._hash, self._hashed = hashlib.sha256(start), len(start)
        self._next: dict[str, int] = {}
        self._end: dict[str, int] = {}
        place = len(start)
        for tensor in tensors:
            end = place + tensor.nbytes
            self._next[tensor.name] = end if tensor.name in finished else place
            self._end[tensor.name] = end
            place += _padded(tensor.nbytes)
        self._file = path.open("r+b" if finished else "wb", buffering=0)
        try:
            self._file.truncate(place)  # padding is zeros
            self._put(0, memoryview(start))
        except BaseException:
            self._file.close()
            raise

    def write(self, name: str, data: torch.Tensor) -> None:
        """Append the bytes of `data` to the tensor `name`."""
        import torch

        view = data.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        place = self._next[name]
        if place + len(view) > self._end[name]:
            raise ValueError(f"{name} is longer than its header says")
        self._put(place, view)
        self._next[name] = end = place + len(view)
        if place == self._hashed:
            self._hash.update(view)
            padding = _padded(end) - end if end == self._end[name] else 0
            self._hash.update(bytes(padding))
            self._hashed = end + padding

    def flush(self) -> None:
        """Wait until everything written is on the disk, and drop its pages from memory."""
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Flush and close the file. Raise `ValueError` if a tensor is too short."""
        try:
            if short := [name for name, place in self._next.items() if place != self._end[name]]:
                raise ValueError(f"{short[0]} is shorter than its header says")
            os.fsync(self._file.fileno())
            if self._hashed == os.fstat(self._file.fileno()).st_size:
                self.sha256 = self._hash.hexdigest()
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()

    def _put(self, place: int, data: memoryview) -> None:
        self._file.seek(place)
        while data:
            data = data[self._file.write(data) :]


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _number(kind: str) -> int:
    return _STRING if kind == "str" else _KINDS[kind][0]


def _values(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "str":
        return b"".join(_text(value) for value in values)
    return b"".join(struct.pack(_KINDS[kind][1], value) for value in values)


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data

"""The header of a GGUF file, read in milliseconds: settings, and names, shapes, types and places of tensors.

    "GGUF" version tensors entries · entries of (key, type, value) · tensors of (name, dimensions, shape,
    type, offset) · data

The library's own reader makes an array of every token of the vocabulary, which takes half a minute. Where
transformers reads a file, it is given one of a few kilobytes without the data.
"""

import math
import re
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from qcore.base.errors import InputError
from qcore.models.headers import regular_size

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _UINT32, _BOOL = 8, 9, 4, 7
_LONGEST = 1 << 24  # bytes of one string, and entries of one array
_MOST_DIMENSIONS = 8
_START = 24  # bytes before the first entry
_SHORT = 4096  # bytes of an array that is copied
_MOST_ENTRIES = 1 << 20
PART = re.compile(r"-(\d{5})-of-(\d{5})$")  # llama.cpp's file names of a split model
PLAIN = ("F64", "F32", "F16", "BF16")
_REFUSED = ("gemma", "olmoe")  # by transformers 5.24
_ALIGNMENT = 32  # bytes, of tensors in files that name none
_ALIGNMENTS = tuple(1 << power for power in range(3, 17))


@dataclass(frozen=True)
class Tensor:
    """`shape` as torch has it (outermost first); `type` is ggml's number of the format. `start` is the offset
    of its first byte in the file, `nbytes` its size (None for a type that is not known)."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    nbytes: int | None

    @property
    def type_name(self) -> str:
        """ggml's name of the format, such as "Q4_K"."""
        from gguf import GGMLQuantizationType

        try:
            return GGMLQuantizationType(self.type).name
        except ValueError:
            return f"type {self.type}"


@dataclass(frozen=True)
class Header:
    """`entries` maps each key to (type, the value's bytes; None for long arrays), `lengths` the arrays' keys
    to their lengths. The entries end at byte `end` of the file; `places` maps each key to the position of its
    value."""

    entries: dict[str, tuple[int, bytes | None]]
    lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    end: int = 24
    places: dict[str, int] = field(default_factory=dict)

    def text(self, key: str) -> str | None:
        """Return the text of the entry `key`; None if there is none."""
        kind, value = self.entries.get(key, (None, None))
        return value[8:].decode("utf-8", "replace") if kind == _STRING and value is not None else None

    def number(self, key: str) -> int | float | None:
        """Return the number of the entry `key`; None if there is none."""
        kind, value = self.entries.get(key, (None, None))
        if kind not in _NUMBERS or value is None:
            return None
        return struct.unpack("<" + _NUMBERS[kind], value)[0]

    def flags(self, key: str) -> list[bool] | None:
        """Return the list of truth values of the entry `key`; None if there is none."""
        kind, value = self.entries.get(key, (None, None))
        if kind != _ARRAY or value is None or struct.unpack("<I", value[:4])[0] != _BOOL:
            return None
        return [byte != 0 for byte in value[12:]]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as "qwen2"; empty if the file names none."""
        return self.text("general.architecture") or ""

    @property
    def quantized_types(self) -> list[str]:
        """The names of the quantized types among the tensors, sorted."""
        return sorted({tensor.type_name for tensor in self.tensors} - set(PLAIN))


def check(path: Path) -> None:
    """Check the first 24 bytes. Raise `InputError` if the file is not a GGUF file, or is one part of
    several."""
    size = regular_size(path)
    with path.open("rb") as file:
        check_start(file.read(24), path.name, size)
    if (part := PART.search(path.stem)) and int(part[2]) > 1:
        raise InputError(
            f"{path.name} is one of {int(part[2])} parts. Merge them into one file with `llama-gguf-split "
            "--merge` first."
        )


def check_start(start: bytes, name: str, size: int) -> None:
    """Check the first 24 bytes, `start`, of the file `name` of `size` bytes. Raise `InputError` if they do
    not begin a GGUF file."""
    if len(start) < 24 or start[:4] != b"GGUF":
        raise InputError(f"{name} is not a GGUF file: it does not begin with the letters GGUF.")
    version, tensors, entries = struct.unpack("<IQQ", start[4:])
    if version not in (2, 3):
        raise InputError(f"{name} is GGUF version {version}; versions 2 and 3 (little-endian) can be read.")
    if not 0 < tensors <= min(_MOST_ENTRIES, size) or entries > min(_MOST_ENTRIES, size):
        raise InputError(
            f"{name} declares {tensors} tensors and {entries} entries in {size} bytes, so it is damaged."
        )


def read(path: Path) -> Header:
    """Return the header of a file that `check` accepted. Raise `InputError` if it is damaged or cut
    short."""
    with path.open("rb") as file:
        return parse(file, path.name, path.stat().st_size)


def parse(file: BinaryIO, name: str, size: int | None) -> Header:
    """Return the header at the beginning of `file`, the GGUF file `name` of `size` bytes; with None, tensors
    may end anywhere. Raise `InputError` as `read`."""
    try:
        _, count, entries = struct.unpack("<IQQ", file.read(_START)[4:])
        known: dict[str, tuple[int, bytes | None]] = {}
        lengths: dict[str, int] = {}
        places: dict[str, int] = {}
        for _ in range(entries):
            key = _string(file).decode()
            (kind,) = struct.unpack("<I", file.read(4))
            if key in known:
                raise ValueError(f"the key {key[:80]!r} occurs twice")
            places[key] = file.tell()
            known[key] = (kind, _value(file, kind, key, lengths))
        end = file.tell()
        tensors = [_tensor(file) for _ in range(count)]
        header = Header(known, lengths, (), end, places)
        placed = _placed(tensors, file.tell(), header.number("general.alignment"))
        _check_ranges(placed, math.inf if size is None else size)
        return replace(header, tensors=placed)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{name} cannot be read as GGUF, so it is damaged or cut short: {error}.") from error


def texts(file: BinaryIO, header: Header, key: str) -> list[str]:
    """Return the list of texts of the entry `key`, such as the vocabulary; empty if there is none."""
    if key not in header.lengths:
        return []
    file.seek(header.places[key])
    inner, length = struct.unpack("<IQ", file.read(12))
    return [_string(file).decode("utf-8", "replace") for _ in range(length)] if inner == _STRING else []


def _string(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST:
        raise ValueError(f"a text of {length} bytes")
    return file.read(length)


def _value(file: BinaryIO, kind: int, key: str, lengths: dict[str, int]) -> bytes | None:
    start = file.tell()
    if kind == _STRING:
        _string(file)
    elif kind in _NUMBERS:
        file.seek(struct.calcsize(_NUMBERS[kind]), 1)
    elif kind == _ARRAY:
        inner, lengths[key] = struct.unpack("<IQ", file.read(12))
        if lengths[key] > _LONGEST:
            raise ValueError(f"a list of {lengths[key]} entries")
        if inner == _STRING:
            for _ in range(lengths[key]):
                _string(file)
        elif inner in _NUMBERS:
            file.seek(struct.calcsize(_NUMBERS[inner]) * lengths[key], 1)
        else:
            raise ValueError(f"a list of type {inner}")
    else:
        raise ValueError(f"a value of type {kind}")
    end = file.tell()
    if kind == _ARRAY and end - start > _SHORT:
        return None
    file.seek(start)
    value = file.read(end - start)
    if len(value) < end - start:
        raise ValueError("it ends in the middle of a value")
    return value


def _tensor(file: BinaryIO) -> Tensor:
    name = _string(file).decode()
    (dimensions,) = struct.unpack("<I", file.read(4))
    if not 0 < dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", file.read(8 * dimensions))
    kind, offset = struct.unpack("<IQ", file.read(12))
    return Tensor(name, tuple(reversed(shape)), kind, offset, None)


def _placed(tensors: list[Tensor], end: int, alignment: int | float | None) -> tuple[Tensor, ...]:
    """Return the tensors with their sizes and their places in the file, whose header ends at byte `end`."""
    alignment = _ALIGNMENT if alignment is None else alignment
    if not isinstance(alignment, int) or alignment not in _ALIGNMENTS:
        raise ValueError(f"an alignment of {alignment}")
    start = -(-end // alignment) * alignment
    placed = []
    for tensor in tensors:
        if tensor.start % alignment:
            raise ValueError(
                f"{tensor.name} begins at the offset {tensor.start}, not a multiple of {alignment}"
            )
        placed.append(replace(tensor, start=start + tensor.start, nbytes=_size(tensor)))
    return tuple(placed)


def _size(tensor: Tensor) -> int | None:
    """Return the bytes of a tensor; None for a type that the gguf library does not know."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
    except (ValueError, KeyError):
        return None
    columns = tensor.shape[-1] if tensor.shape else 1
    if columns % block:
        raise ValueError(
            f"{tensor.name} has rows of {columns} values, but {tensor.type_name} holds {block} per block"
        )
    return math.prod(tensor.shape) // block * nbytes  # Python's integers cannot overflow


def _check_ranges(tensors: tuple[Tensor, ...], size: float) -> None:
    """Raise `ValueError` for tensors of one name, and for tensors that overlap or end behind the file."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError("two tensors have the same name")
    end = 0
    for tensor in sorted(tensors, key=lambda each: (each.start, each.nbytes or 0)):
        if tensor.start < end:
            raise ValueError(f"the tensor {tensor.name} overlaps the one before it")
        end = tensor.start + (tensor.nbytes or 0)
        if end > size:
            raise ValueError(f"the tensor {tensor.name} ends at byte {end}, but the file ends at {size}")


def write_small(path: Path, header: Header, small: Path) -> None:
    """Write a GGUF file `small` with all settings of `path`, vocabulary included, and one number per tensor,
    for transformers' conversion of tokenizers. An architecture that it refuses is called llama there: the
    tokenizer does not depend on it."""
    with path.open("rb") as file:
        settings = file.read(header.end)
    key = "general.architecture"
    if header.architecture in _REFUSED:
        start = header.places[key]
        end = start + len(header.entries[key][1] or b"")
        settings = settings[:start] + struct.pack("<Q", 5) + b"llama" + settings[end:]
    settings = settings[_START:]
    small.write_bytes(_with_one_number(header, len(header.entries), settings))


def without_data(header: Header) -> bytes:
    """Return a GGUF file with the same settings and tensor names, without long lists, and with one number per
    tensor."""
    entries = {key: (kind, value) for key, (kind, value) in header.entries.items() if value is not None}
    rows = next((tensor.shape[0] for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    if rows is not None:
        entries.setdefault(f"{header.architecture}.vocab_size", (_UINT32, struct.pack("<I", rows)))
    entries.setdefault("general.name", (_STRING, struct.pack("<Q", 0)))
    settings = b"".join(
        struct.pack("<Q", len(key.encode())) + key.encode() + struct.pack("<I", kind) + value
        for key, (kind, value) in entries.items()
    )
    return _with_one_number(header, len(entries), settings)


def _with_one_number(header: Header, count: int, settings: bytes) -> bytes:
    """Return a GGUF file with the encoded `settings`, `count` entries, and the names of the tensors."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(header.tensors), count), settings]
    for tensor in header.tensors:
        name = tensor.name.encode()
        parts.append(struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 1, 0, 0))
    text = b"".join(parts)
    return text + bytes(-len(text) % 64 + 64)

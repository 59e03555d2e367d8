"""The header of a GGUF file, read in milliseconds: settings, and names, shapes and types of the tensors.

    "GGUF" version tensors entries · entries of (key, type, value) · tensors of (name, dimensions, shape,
    type, offset) · data

The library's own reader makes an array of every token of the vocabulary, which takes half a minute.
transformers still translates the settings: they are written to a file of a few kilobytes, without vocabulary
and data.
"""

import hashlib
import math
import struct
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from qcore.base.errors import InputError
from qcore.base.transformers_internals import gguf_config
from qcore.models import gguf_file
from qcore.models.checkpoint import Checkpoint
from qcore.models.config import check_against, checked, to_transformers
from qcore.models.headers import TensorInfo

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_LONGEST = 1 << 24  # bytes of one string, and entries of one array
_MOST_DIMENSIONS = 8
_START = 24  # bytes before the first entry
_LONGEST_ROPE = 1 << 16  # frequencies
_SHORT = 4096  # bytes of an array that is copied
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
        return value[8:].decode() if kind == _STRING and value is not None else None

    def number(self, key: str) -> int | float | None:
        """Return the number of the entry `key`; None if there is none."""
        kind, value = self.entries.get(key, (None, None))
        if kind not in _NUMBERS or value is None:
            return None
        return struct.unpack("<" + _NUMBERS[kind], value)[0]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as "qwen2"; empty if the file names none."""
        return self.text("general.architecture") or ""

    @property
    def quantized_types(self) -> list[str]:
        """The names of the quantized types among the tensors, sorted."""
        return sorted({tensor.type_name for tensor in self.tensors} - set(gguf_file.PLAIN))


def outline(path: Path, name: str) -> Checkpoint:
    """Return the checkpoint, in fp32, that a conversion of `path` would give. Only headers are read. Raise
    `InputError`."""
    from qcore.layers.inventory import inventory
    from qcore.models.assembly import empty_model

    gguf_file.check(path)
    found = read(path)
    config = config_of(path, found)
    check_against(
        config, {tensor.name: TensorInfo("F32", tensor.shape, 0, path.name, 0) for tensor in found.tensors}
    )
    digest = hashlib.sha256(repr((path.name, found.entries, found.tensors)).encode()).hexdigest()
    model = empty_model(to_transformers(config), meta_buffers=True)
    tensors, start = {}, 0
    for full, tensor, shared in inventory(model):
        if not shared:
            tensors[full] = TensorInfo(
                "F32", tuple(tensor.shape), 4 * tensor.numel(), "model.safetensors", start
            )
            start += 4 * tensor.numel()
    return Checkpoint(
        name, path.parent, None, f"gguf-{digest}", config, tensors, False, _describe(path, found), "gguf"
    )


def read(path: Path) -> Header:
    """Return the header of a file that `gguf_file.check` accepted. Raise `InputError` if it is damaged or cut
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
    if dimensions > _MOST_DIMENSIONS:
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


def config_of(path: Path, header: Header) -> dict:
    """Return the settings as a transformers config. Raise `InputError` for an architecture that transformers
    cannot take from GGUF."""
    with tempfile.TemporaryDirectory(prefix="qcore-gguf-") as scratch:
        small = Path(scratch) / path.name
        small.write_bytes(_without_data(header))
        try:
            parsed = gguf_config(small)
        except Exception as error:  # the library does not validate the file and may raise anything
            raise InputError(
                f"{path.name} cannot be converted: {str(error).strip().splitlines()[0]}"
            ) from error
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in parsed.items()}
    return checked(plain | rope_scaling(path, header))


def rope_scaling(path: Path, header: Header) -> dict:
    """Return the settings of a scaled rotary embedding, which transformers does not take from GGUF; empty
    without one. Raise `InputError` for a scaling of an unknown kind.

    Llama 3's scaling is stored as one factor per frequency. LongRoPE with equal factors for short and long
    texts has the same frequencies.
    """
    own = f"{header.architecture}.rope.scaling"
    original = header.number(f"{own}.original_context_length")
    context = header.number(f"{header.architecture}.context_length")
    short = _factors(path, header, "rope_freqs.weight", "rope_factors_short.weight")
    if short is not None:
        long = _factors(path, header, "rope_factors_long.weight") or short
        scaling: dict[str, object] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        scaling["attention_factor"] = header.number(f"{own}.attn_factor") or 1.0
        scaling["original_max_position_embeddings"] = original or context
        return {"rope_scaling": scaling, "original_max_position_embeddings": original or context}
    kind, factor = header.text(f"{own}.type"), header.number(f"{own}.factor")
    if kind in (None, "none", "longrope") or factor in (None, 0, 1):
        return {}
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        return {"rope_scaling": {key: value for key, value in scaling.items() if value is not None}}
    raise InputError(f"{path.name} scales its rotary embedding by {kind!r}, which qcore does not know.")


def _factors(path: Path, header: Header, *names: str) -> list[float] | None:
    """Return the values of the first tensor of `names` that the file holds; None if it holds none."""
    tensor = next((tensor for tensor in header.tensors if tensor.name in names), None)
    if tensor is None:
        return None
    if tensor.type_name != "F32" or math.prod(tensor.shape) > _LONGEST_ROPE:
        raise InputError(
            f"{path.name} stores {tensor.name} as {tensor.type_name} {tensor.shape}, not as factors."
        )
    with path.open("rb") as file:
        file.seek(tensor.start)
        return list(struct.unpack(f"<{math.prod(tensor.shape)}f", file.read(tensor.nbytes or 0)))


def write_small(path: Path, header: Header, small: Path) -> None:
    """Write a GGUF file `small` with all settings of `path`, vocabulary included, and one number per
    tensor."""
    with path.open("rb") as file:
        file.seek(_START)
        settings = file.read(header.end - _START)
    small.write_bytes(_with_one_number(header, len(header.entries), settings))


def _without_data(header: Header) -> bytes:
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


def _describe(path: Path, header: Header) -> str:
    types = header.quantized_types
    size = f"{path.stat().st_size / 1e6:,.0f} MB on disk"
    if not types:
        return f"A GGUF file in floating point, {size}; it is converted to fp32 when it is used."
    return (
        f"A GGUF file quantized as {', '.join(types)}, {size}. It is dequantized to fp32 when used, and the "
        "loss of a recipe adds to its own."
    )

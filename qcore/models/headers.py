"""Safetensors headers, validated before any weight is read or memory is allocated.

8 bytes   N, little-endian: length of the header
N bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …, "__metadata__": {…}}
the rest  the tensors; the ranges cover it exactly, without gap or overlap
"""

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePath

from qcore.base.errors import InputError
from qcore.base.strict_json import distinct, is_deep

LONGEST_HEADER = 100_000_000  # bytes, the limit of the format
LONGEST_JSON = 64_000_000  # bytes of an index
LONGEST_NAME = 512  # characters of the name of a tensor
LONGEST_SETTINGS = 16_000_000  # bytes of other JSON files beside the weights
_LONGEST_FILE_NAME = 200  # bytes
_DEEP = "it is nested too deeply"
_LONGEST_START = 64  # bytes by which a file in the place of another is recognized
BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: `dtype` as the file spells it ("F32", "BF16"), `shape`, `nbytes`, the name of its
    `file` in the folder, and `start`, the offset of its first byte in that file."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str
    start: int

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of one safetensors file, by name. Raise `InputError` naming the file (and the
    tensor) if the header is invalid."""
    size = regular_size(path)
    return parse_header(header_text(path, size), path, size)


def check_present(path: Path) -> None:
    """Raise `InputError` if the file only points to its content in Git LFS, or is a web page."""
    with path.open("rb") as file:
        _check_start(file.read(_LONGEST_START), path.name)


def _check_start(start: bytes, name: str) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{name} only points to a file in Git LFS, which was not downloaded with the rest. Download the "
            "file itself."
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{name} is a web page, saved in the place of the file. Download the file itself.")


def header_text(path: Path, size: int) -> bytes:
    """Return the JSON of the header of a safetensors file of `size` bytes. Raise `InputError` if it has no
    header."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length < 2 or length > min(size - 8, LONGEST_HEADER):
            _check_start(prefix + file.read(_LONGEST_START - 8), path.name)
            raise InputError(
                f"{path.name} is not a valid safetensors file: its header would be {length} bytes long in a "
                f"file of {size}. Download or save it again."
            )
        return file.read(length)


def declared_size(text: bytes, name: str) -> int:
    """Return the size in bytes of the file that the header `text` describes. Raise `InputError` if it is not
    a JSON object."""
    entries = parse_json(text, name).values()
    offsets = [entry.get("data_offsets") for entry in entries if isinstance(entry, dict)]
    ends = [pair[1] for pair in offsets if isinstance(pair, list) and _counts(pair) and len(pair) == 2]
    return 8 + len(text) + max(ends, default=0)


def parse_header(text: bytes, path: PurePath, size: int) -> dict[str, TensorInfo]:
    """Return the tensors in the header `text` (only its JSON) of the file `path`, which is `size` bytes long
    and need not exist locally. Raise `InputError` as `read_header` does."""
    header, start = parse_json(text, path.name), 8 + len(text)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, start, size) for name, entry in header.items()}
    _check_ranges(path, tensors, start, size)
    return tensors


def regular_size(path: Path) -> int:
    """Return the size in bytes of a regular file, links followed. Raise `InputError` if it is missing, not a
    regular file, or unreadable."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read in {path.parent}: {error.strerror or error}."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path.name} in {path.parent} is not a regular file.")
    if not os.access(path, os.R_OK):
        raise InputError(
            f"{path.name} in {path.parent} is not readable by this user. Change its permissions."
        )
    return status.st_size


def is_file_name(name: object) -> bool:
    """Return whether `name`, which a file gives, is the plain name of a file beside it: no path, and no name
    that a file system refuses."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_FILE_NAME
        and name.isprintable()
        and name == PurePath(name).name != ".."
        and "\\" not in name
    )


def read_json(path: Path, longest: int = LONGEST_JSON) -> dict:
    """Return a JSON object from a small file. Raise `InputError` if it has more than `longest` bytes, is not
    UTF-8, not a JSON object, nested too deeply, or repeats a key."""
    size = regular_size(path)
    if size > longest:
        raise InputError(
            f"{path.name} is {size / 1e6:.0f} MB; config and index files are limited to "
            f"{longest / 1e6:.0f} MB."
        )
    return parse_json(path.read_bytes(), path.name)


def parse_json(text: bytes, name: str) -> dict:
    """Return the JSON object in `text`, which came from the file `name`."""
    _check_start(text[:_LONGEST_START], name)
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=distinct)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not valid UTF-8 where it should hold JSON. Download or save it again."
        ) from error
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) else _DEEP
        raise InputError(f"{name} does not hold valid JSON: {why}. Download or save it again.") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{name} must hold a JSON object, but holds a {type(parsed).__name__}.")
    if is_deep(parsed):
        raise InputError(f"{name} does not hold valid JSON: {_DEEP}. Download or save it again.")
    return parsed


def _tensor(path: PurePath, name: str, entry: object, start: int, size: int) -> TensorInfo:
    def broken(why: str) -> InputError:
        return InputError(f"The tensor {name!r} in {path.name} {why}. Download or save the file again.")

    if len(name) > LONGEST_NAME:
        raise broken(f"has a name of {len(name)} characters, more than {LONGEST_NAME}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise broken("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise broken(f"has the unknown dtype {dtype!r}")
    if not _counts(shape):
        raise broken(f"has the impossible shape {shape!r}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(f"has the impossible byte range {offsets!r}")
    bits = math.prod(shape) * BITS[dtype]  # Python's integers cannot overflow
    if bits != 8 * (offsets[1] - offsets[0]):
        raise broken(f"has {offsets[1] - offsets[0]} bytes where {dtype} {shape} needs {-(-bits // 8)}")
    if start + offsets[1] > size:
        raise broken(f"ends at byte {start + offsets[1]}, but the file ends at {size}, so it is cut short")
    return TensorInfo(dtype, tuple(shape), offsets[1] - offsets[0], path.name, start + offsets[0])


def _counts(values: object) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= 64
        and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
    )


def _check_ranges(path: PurePath, tensors: dict[str, TensorInfo], start: int, size: int) -> None:
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != position:
            what = "overlaps the one before it" if tensor.start < position else "leaves a gap before it"
            raise InputError(
                f"The tensor {name!r} in {path.name} {what}, so the file is damaged. Download or save it "
                "again."
            )
        position += tensor.nbytes
    if position != size:
        raise InputError(
            f"{path.name} has {size - position} bytes that belong to no tensor, so it is damaged. Download "
            "or save it again."
        )

"""llama.cpp's importance matrix: the mean square of each input of each weight over a calibration text.

    importance(j) = 1/n · Σ x_j²       over n tokens

Its tool `llama-imatrix` writes a GGUF file with two tensors per weight, named as the weight in a GGUF model:
`….in_sum2`, the sums (matrices, K), and `….counts`, the numbers of tokens (matrices, 1), with one matrix per
expert. Its older form, `imatrix.dat`, lists (name, calls, mean squares · calls). Both are read; the first is
written.

A file comes from elsewhere, so sizes are checked before anything is read, and values must be finite and not
negative. An expert that no token reached has no importance: its inputs count alike, as in llama.cpp.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from qcore.base.errors import InputError
from qcore.base.files import expanded, replaced_file
from qcore.models import gguf_header
from qcore.models.headers import regular_size

LARGEST = 4 << 30  # bytes of a file
_SUMS, _COUNTS = ".in_sum2", ".counts"
_F32 = 0
_LONGEST_NAME = 1024
_MOST_ENTRIES = 1 << 20


@dataclass(frozen=True)
class ImportanceMatrix:
    """`values` maps the name of a weight in a GGUF model, such as "blk.0.attn_q.weight", to the importance of
    its inputs, float32 (matrices, K). `datasets` are the texts it was computed from, `tokens` their number
    (None: unknown); `name` and `sha256` are the file's."""

    values: Mapping[str, torch.Tensor]
    tokens: int | None = None
    datasets: tuple[str, ...] = ()
    name: str = ""
    sha256: str = ""

    @property
    def record(self) -> dict:
        """The file and its texts, JSON-ready."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "datasets": list(self.datasets),
            "tokens": self.tokens,
        }


def read(path: Path | str) -> ImportanceMatrix:
    """Return the importance matrix in the file at `path`, of either form. Raise `InputError` if the file is
    missing, damaged, or something else."""
    path = expanded(path)
    size = regular_size(path)
    if size > LARGEST:
        raise InputError(f"{path.name} has {size:,} bytes, but an importance matrix has at most {LARGEST:,}.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        begins = file.read(4)
        file.seek(0)
        try:
            found = _read_gguf(path, file) if begins == b"GGUF" else _read_legacy(file, size)
        except (struct.error, UnicodeDecodeError, ValueError) as error:
            raise InputError(f"{path.name} cannot be read as an importance matrix: {error}.") from error
    values, tokens, datasets = found
    if not values:
        raise InputError(f"{path.name} holds no importance of any weight.")
    return ImportanceMatrix(values, tokens, datasets, path.name, digest)


def write(
    path: Path | str, matrix: ImportanceMatrix, counts: Mapping[str, Sequence[int]], window: int
) -> None:
    """Write `matrix` to `path` as llama.cpp's GGUF form. `counts` holds the tokens that reached each matrix
    of each weight; `window` is the number of tokens per window. Raise `InputError` if the file cannot be
    written."""
    from gguf import GGUFWriter

    path = expanded(path)
    with replaced_file(path) as file:
        writer = GGUFWriter(file.name, "")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", list(matrix.datasets))
        writer.add_uint32("imatrix.chunk_count", max(1, (matrix.tokens or window) // window))
        writer.add_uint32("imatrix.chunk_size", window)
        for name, value in sorted(matrix.values.items()):
            tokens = torch.tensor(counts[name], dtype=torch.float32).unsqueeze(1)
            writer.add_tensor(name + _SUMS, (value.cpu() * tokens).numpy())
            writer.add_tensor(name + _COUNTS, tokens.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


Found = tuple[dict[str, torch.Tensor], int | None, tuple[str, ...]]


def _read_gguf(path: Path, file: BinaryIO) -> Found:
    gguf_header.check(path)
    header = gguf_header.read(path)
    if (kind := header.text("general.type")) != "imatrix":
        raise ValueError(f"its type is {kind!r}, not 'imatrix'")
    places = {tensor.name: tensor for tensor in header.tensors}
    values = {}
    for name, place in places.items():
        if not name.endswith(_SUMS):
            continue
        weight = name.removesuffix(_SUMS)
        if weight + _COUNTS not in places:
            raise ValueError(f"the numbers of tokens of {weight} are missing")
        sums, counts = _tensor(file, place), _tensor(file, places[weight + _COUNTS])
        if counts.numel() != len(sums):
            raise ValueError(f"{weight} has {len(sums)} matrices and {counts.numel()} numbers of tokens")
        counts = counts.view(-1, 1)
        values[weight] = _checked(weight, torch.where(counts > 0, sums / counts.clamp_min(1e-30), 1.0))
    chunks, window = header.number("imatrix.chunk_count"), header.number("imatrix.chunk_size")
    tokens = int(chunks) * int(window) if chunks and window else None
    return values, tokens, tuple(gguf_header.texts(file, header, "imatrix.datasets"))


def _tensor(file: BinaryIO, place: gguf_header.Tensor) -> torch.Tensor:
    """Return a float32 tensor as (matrices, columns)."""
    if place.type != _F32 or not 1 <= len(place.shape) <= 2 or place.nbytes is None:
        raise ValueError(f"{place.name} is not a matrix in float32")
    file.seek(place.start)
    data = torch.frombuffer(bytearray(file.read(place.nbytes)), dtype=torch.float32)
    return _checked(place.name, data.view(-1, place.shape[-1]))


def _read_legacy(file: BinaryIO, size: int) -> Found:
    (entries,) = struct.unpack("<i", file.read(4))
    if not 0 < entries <= min(_MOST_ENTRIES, size // 12):
        raise ValueError(f"it is neither GGUF nor a list of importances ({entries} entries in {size} bytes)")
    values = {}
    for _ in range(entries):
        (length,) = struct.unpack("<i", file.read(4))
        if not 0 < length <= _LONGEST_NAME:
            raise ValueError(f"a name of {length} bytes")
        name = file.read(length).decode()
        calls, count = struct.unpack("<ii", file.read(8))
        if not 0 < count <= size // 4:
            raise ValueError(f"{count} values of {name}")
        data = file.read(4 * count)
        if len(data) < 4 * count:
            raise ValueError("it ends in the middle of a weight")
        value = torch.frombuffer(bytearray(data), dtype=torch.float32).view(1, -1)
        values[name] = _checked(name, value / calls if calls > 0 else torch.ones_like(value))
    rest = file.read(8 + _LONGEST_NAME)
    if len(rest) < 8:
        return values, None, ()
    _, length = struct.unpack("<ii", rest[:8])
    name = rest[8 : 8 + max(0, length)].decode("utf-8", "replace")
    return values, None, (name,) if name else ()


def _checked(name: str, values: torch.Tensor) -> torch.Tensor:
    if not math.isfinite(float(values.sum())) or float(values.min()) < 0:
        raise ValueError(f"{name} holds values that are negative or not finite")
    return values

"""A folder with a model as one GGUF file, for llama.cpp and the programs built on it, and the original's
tokenizer, licence and card beside it.

Every code and scale is the recipe's own, in the blocks of a type of ggml. What no recipe touches stays in
floating point: in 16 bits where that loses nothing, otherwise in 32. The file is written tensor by tensor; a
killed export of weights that need no calibration text continues where it was, with the same bytes.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

import qcore
from qcore.base.errors import InputError, UnavailableError
from qcore.base.files import read_json, write_json
from qcore.base.progress import Progress
from qcore.base.write_behind import WriteBehind
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import ggml, gguf_metadata
from qcore.interop.gguf_names import Names, Place, architecture, is_always_float32
from qcore.interop.gguf_writer import GgufFile, Stored, header, total_bytes
from qcore.library import companions
from qcore.library.exports import Exported, Target
from qcore.library.gguf_settings import fields_of, file_name, tokenizer_fields
from qcore.library.journal import Journal
from qcore.library.loading import load_tokenizer
from qcore.library.parameters import Entry, LoadedParameters, Parameters, narrowest, row_chunks
from qcore.library.saving import check_folder
from qcore.models.checkpoint import Checkpoint
from qcore.models.config import to_transformers
from qcore.recipes import Engine, Float, Recipe
from qcore.recipes.ledger import Ledger, LedgerRow

if TYPE_CHECKING:
    pass

_FLOATS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_NARROW = {torch.bfloat16: "BF16", torch.float16: "F16"}
_FLUSHED = 256 << 20  # bytes after which the file is flushed and its progress noted
_NOTE = "written.json"


@dataclass(frozen=True)
class _Part:
    """A tensor of the file, made from a part of a parameter. `source` is None for a tensor that no parameter
    holds, whose `value` is given."""

    stored: Stored
    type: str
    place: Place
    value: torch.Tensor | None = None


@dataclass(frozen=True)
class _Unit:
    """A parameter and the tensors that are made from it together."""

    entry: Entry | None
    parts: tuple[_Part, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.stored.nbytes for part in self.parts)


class _Gguf(Target):
    """The target "gguf"."""

    name = "gguf"

    def source(self, recipe: Recipe) -> Recipe | None:
        """Raise `InputError` for another library's format."""
        if isinstance(recipe.weights, Engine):
            raise InputError(
                f"{recipe.name} is another library's format, which GGUF has no type for. Use a recipe of "
                "qcore's own, such as gguf-q4_k."
            )
        return None if isinstance(recipe.weights, Float) else recipe

    def check(self, checkpoint: Checkpoint, recipe: Recipe | None, entries: Sequence[Entry]) -> None:
        """Raise `InputError` for an architecture, a tokenizer or a format that llama.cpp does not have."""
        config = to_transformers(checkpoint.config)
        known = architecture(config.model_type)
        gguf_metadata.check(config)
        names = Names(config)
        for entry in entries:
            if entry.kind == "head" and entry.shares is None and known.head == "tied":
                raise InputError(
                    f"This model has an output head of its own, but llama.cpp's {known.name} uses the "
                    "embedding as the head. A rotated model is one of these: use a recipe without rot-."
                )
            if entry.shares is None:
                names.places(entry.name, entry.shape)
            for format in entry.formats:
                if reason := ggml.reason_against(format, entry.matrix):
                    raise InputError(f"{entry.name}: {reason}")
        tokenizer_fields(checkpoint, config, load_tokenizer(checkpoint))

    def save(
        self,
        parameters: Parameters,
        recipe: Recipe | None,
        folder: Path,
        *,
        overwrite: bool = False,
        progress: Progress,
    ) -> Exported:
        """Write the file. Raise `UnavailableError` if the disk is full."""
        folder = check_folder(folder, overwrite=overwrite)
        checkpoint, config = parameters.checkpoint, parameters.model.config
        chosen = recipe or parameters.recipe
        units = _plan(parameters, recipe)
        stored = [part.stored for unit in units for part in unit.parts]
        kind = _file_type(units, chosen)
        tokenizer = load_tokenizer(checkpoint)
        fields, notes = fields_of(parameters, config, tokenizer, chosen, kind)
        start = header(fields, stored)
        file = f"{file_name(checkpoint)}-{chosen.name if chosen else kind}.gguf"
        streams = not isinstance(parameters, LoadedParameters) or parameters.checkpoint.is_quantized
        identity = {
            "target": self.name,
            "model": [checkpoint.digest, checkpoint.stamp],
            "recipe": chosen and chosen.to_dict(),
            "qcore": qcore.__version__,
            "run": None if streams else secrets.token_hex(8),  # codes that another run may choose differently
        }
        ledger = _ledger(parameters, units, chosen.name if chosen else kind)
        journal = Journal(folder, identity)
        try:
            with journal:
                digest = _write(parameters, units, journal.folder / file, start, progress)
                notes += companions.carry(checkpoint, parameters.model, journal.folder)
                companions.write_marker(
                    journal.folder,
                    target=self.name,
                    recipe=chosen,
                    checkpoint=checkpoint,
                    files={file: digest},
                    ledger=ledger.to_dict(),
                    notes=list(notes),
                )
                (journal.folder / _NOTE).unlink(missing_ok=True)
                journal.publish()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error
            raise UnavailableError(
                f"The disk that holds {folder} is full. The unfinished file is kept in {journal.folder}. "
                "Free some space and repeat the same request to resume, or remove that folder."
            ) from error
        sizes = (total_bytes(start, stored), ledger.bits_per_weight)
        return Exported(ledger.recipe, *sizes, (file,), notes)


TARGET = _Gguf()


# -- the plan ------------------------------------------------------------------------------------------------


def _plan(parameters: Parameters, recipe: Recipe | None) -> list[_Unit]:
    """Return the tensors of the file, by the parameter that they are made from."""
    config = parameters.model.config
    names, known = Names(config), architecture(config.model_type)
    floating = (
        _FLOATS[recipe.weights.dtype] if recipe is not None and isinstance(recipe.weights, Float) else None
    )
    units = []
    for entry in parameters.entries:
        if entry.shares is not None and not (entry.kind == "head" and known.head == "own"):
            continue
        places = names.places(entry.name, entry.shape)
        kind = floating
        if all(is_always_float32(place.name, len(entry.shape)) for place in places):
            kind = "F32"
        elif entry.format is not None:
            kind = ggml.type_of(cast(Format, entry.format), entry.matrix[1])
        elif kind is None:
            kind = _exact_type(parameters, entry)
        units.append(_Unit(entry, tuple(_part(place, entry.shape, kind) for place in places)))
    for name, value in gguf_metadata.extra_tensors(config).items():
        part = _part(Place(name), tuple(value.shape), "F32", value)
        units.append(_Unit(None, (part,)))
    return units


def _part(place: Place, shape: tuple[int, ...], kind: str, value: torch.Tensor | None = None) -> _Part:
    if len(shape) > 1:
        shape = (*shape[:-2], place.count(shape[-2]), shape[-1])
    count = 1
    for size in shape[:-1]:
        count *= size
    nbytes = count * ggml.row_bytes(kind, shape[-1])
    return _Part(Stored(place.name, shape, ggml.NUMBERS[kind], nbytes), kind, place, value)


def _exact_type(parameters: Parameters, entry: Entry) -> str:
    """Return the smallest floating-point type that holds all values of a kept matrix."""
    tensor = parameters.read(entry)
    assert isinstance(tensor, torch.Tensor)
    return _NARROW.get(narrowest(tensor), "F32")


def _file_type(units: Sequence[_Unit], recipe: Recipe | None) -> str:
    """Return the name in llama.cpp of "mostly this type", which is shown to users."""
    share: dict[str, int] = {}
    for unit in units:
        for part in unit.parts:
            if (
                len(part.stored.shape) > 1
                and unit.entry is not None
                and unit.entry.kind not in ("embedding", "head")
            ):
                share[part.type] = share.get(part.type, 0) + part.stored.nbytes
    kind = max(share, key=share.__getitem__, default="F32")
    named = "" if recipe is None else recipe.name.removeprefix("gguf-").upper().replace("-", "_")
    sizes = [name for name in gguf_metadata.FILE_TYPES if name.startswith(kind)]
    exact = next((name for name in sorted(sizes, key=len, reverse=True) if named.startswith(name)), None)
    return exact or (kind if kind in gguf_metadata.FILE_TYPES else f"{kind}_M")


# -- weights -------------------------------------------------------------------------------------------------


def _write(
    parameters: Parameters, units: Sequence[_Unit], path: Path, start: bytes, progress: Progress
) -> str | None:
    """Write the file, from where an earlier process was if it was the same file. Return its SHA-256 if it is
    known."""
    note = read_json(path.parent / _NOTE)
    written = set(note["tensors"]) if isinstance(note, dict) and path.is_file() else set()
    left = [unit for unit in units if not written >= {part.stored.name for part in unit.parts}]
    total, todo = sum(unit.nbytes for unit in units), sum(unit.nbytes for unit in left)
    companions.check_room(path.parent, todo)
    stored = [part.stored for unit in units for part in unit.parts]
    file = GgufFile(path, start, stored, frozenset(written))
    unflushed = 0
    behind = WriteBehind()
    try:
        for unit in left:
            name = unit.entry.name if unit.entry else unit.parts[0].stored.name
            progress(total - todo, total, name)
            for part, data in _data(parameters, unit):
                behind(file.write, part.stored.name, data)
            todo -= unit.nbytes
            written |= {part.stored.name for part in unit.parts}
            unflushed += unit.nbytes
            if unflushed >= _FLUSHED:
                behind(file.flush)
                behind(write_json, path.parent / _NOTE, {"tensors": sorted(written)})
                unflushed = 0
        behind.close()
        file.close()
    except BaseException:
        behind.stop()
        file.abandon()
        raise
    progress(total, total, "")
    return file.sha256


def _data(parameters: Parameters, unit: _Unit) -> Iterator[tuple[_Part, torch.Tensor]]:
    """Yield (part, bytes) of a unit: the bytes of a part come in order."""
    entry = unit.entry
    if entry is None:
        for part in unit.parts:
            assert part.value is not None
            yield part, ggml.encode_float(part.value, part.type)
        return
    for expert in range(entry.experts) if entry.experts else [None]:
        weight = parameters.read(entry, expert)
        if isinstance(weight, QuantizedTensor) and unit.parts[0].type in ggml.FLOATS:
            weight = weight.dequantize()  # a small matrix that llama.cpp reads in float32 only
        if isinstance(weight, QuantizedTensor):
            rows = ggml.encode(weight)
            for part in unit.parts:
                yield part, part.place.pick(rows)
            continue
        for part in unit.parts:
            for chunk in row_chunks(part.place.pick(weight)):
                values = chunk.float() + part.place.shift if part.place.shift else chunk
                try:
                    yield part, ggml.encode_float(values, part.type)
                except InputError as error:
                    raise InputError(f"{entry.name}: {error}") from error


def _ledger(parameters: Parameters, units: Sequence[_Unit], name: str) -> Ledger:
    """Return the account of the file's tensors, by the parameter that each is made from."""
    rows = []
    for unit in units:
        entry = unit.entry
        if entry is None:
            continue
        weights = 1
        for size in entry.shape:
            weights *= size
        kind = unit.parts[0].type
        rows.append(
            LedgerRow(
                name=entry.name,
                shape=entry.shape,
                dtype="float32",
                format=None if kind in ggml.FLOATS else kind,
                bytes_before=4 * weights,
                bytes_after=unit.nbytes,
                weights=weights,
                reason=entry.reason,
            )
        )
    return Ledger(name, tuple(rows), parameters.calibration)

"""What an audit looks at: the files, headers and settings of one checkpoint, read without stopping at damage.

Loading stops at the first thing that is wrong. `read` goes on: what cannot be read becomes an entry of
`damaged`, and the checks report it. Values are not read here. A hub model is read by its small files and by
ranged reads of the headers; `hub_limits` bound them.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from qcore.base.errors import InputError, QcoreError
from qcore.base.files import expanded
from qcore.base.progress import Progress
from qcore.library import manifest as manifests
from qcore.library import outlines
from qcore.library.saving import MANIFEST
from qcore.models import gguf_header, hub
from qcore.models.checkpoint import INDEX, ONNX_MANIFEST, PICKLED, SINGLE
from qcore.models.config import checked, quantized_by
from qcore.models.gguf_header import Header
from qcore.models.headers import TensorInfo, declared_size, header_text, parse_header, read_json, regular_size
from qcore.models.names import Name, classify
from qcore.verbs.audit_structure import Structure, compare
from qcore.verbs.audit_types import FOLDER, GGUF
from qcore.verbs.audit_weights import GGML, PLAIN, StoredWeight, group

WEIGHTS = ".safetensors"
MOST_FILES = 256  # weight files of a hub model whose headers are read
LONGEST_HEADER = 32_000_000  # bytes of one header that are read from the hub
_AT_ONCE = 8  # files
_PIECE = 1 << 24  # bytes read at a time
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", INDEX)


@dataclass
class Subject:
    """A checkpoint to audit. `files` maps the names of all files to their sizes; `settings` the JSON files to
    their content; `damaged` the unreadable files to the reason. `tensors` are those of all readable headers,
    `lengths` the bytes that each header promises. `folder` holds the small files, and the weights if `local`.
    `of_gguf` is the header of a GGUF file, and `texts` its lists of texts."""

    name: str
    kind: str
    folder: Path
    local: bool = True
    revision: str | None = None
    files: dict[str, int] = field(default_factory=dict)
    settings: dict[str, dict] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    twice: dict[str, tuple[str, str]] = field(default_factory=dict)
    not_looked_at: list[str] = field(default_factory=list)
    manifest: manifests.Manifest | None = None
    of_gguf: Header | None = None
    tokens: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict:
        """config.json; empty if it is missing or damaged."""
        return self.settings.get("config.json", {})

    @property
    def index(self) -> dict[str, str] | None:
        """The index's map from tensors to files; None without a usable index."""
        found = self.settings.get(INDEX, {}).get("weight_map")
        if not isinstance(found, dict) or SINGLE in self.files:
            return None
        return {name: file for name, file in found.items() if isinstance(file, str)}

    @property
    def weight_files(self) -> list[str]:
        """The files that a loader reads: the single file, or those of the index, as far as they exist."""
        if SINGLE in self.files:
            return [SINGLE]
        index = self.index
        if index is not None:
            return sorted(set(index.values()) & set(self.files))
        return sorted(name for name in self.files if name.endswith(WEIGHTS))

    @property
    def quantization(self) -> Mapping[str, Any]:
        """The settings of the library that quantized the model; empty if none did."""
        for key in ("quantization_config", "compression_config", "quantization"):
            found = self.config.get(key)
            if isinstance(found, dict):
                return found
        for file in ("quantize_config.json", "quant_config.json"):
            if file in self.settings:
                return self.settings[file]
        return {}

    @property
    def is_ours(self) -> bool:
        """Whether qcore saved the model, so that its manifest says what must be there."""
        return MANIFEST in self.files or ONNX_MANIFEST in self.files

    @property
    def method(self) -> str | None:
        """The name of the quantization method; None for a model in floating point."""
        if self.of_gguf is not None:
            return ", ".join(self.of_gguf.quantized_types) or None
        if self.manifest is not None:
            return self.manifest.recipe.name
        if "quantization" in self.config and self.config["quantization"] == self.quantization:
            return "mlx"
        return quantized_by(self.config, self.folder) if self.config else None

    @cached_property
    def weights(self) -> list[StoredWeight]:
        """The weights that the tensors hold."""
        if self.of_gguf is not None:
            return [
                StoredWeight(
                    name,
                    PLAIN if tensor.dtype in gguf_header.PLAIN else GGML,
                    tensor.dtype,
                    tensor.shape,
                    {"weight": name},
                    tensor.nbytes,
                )
                for name, tensor in sorted(self.tensors.items())
            ]
        return group(self.tensors, self.quantization, self.manifest)

    @cached_property
    def structure(self) -> Structure | None:
        """The comparison of the weights with the architecture; None where it cannot be made, see
        `not_looked_at`."""
        if self.kind != FOLDER or self.is_ours or not self.config or not self.tensors:
            return None
        if self.damaged.keys() & {*self.weight_files, "config.json", INDEX} and self.index is None:
            return None
        known = [weight for weight in self.weights if weight.name not in self._unread]
        try:
            return compare(checked(dict(self.config)), known, absent=self._unread)
        except InputError as error:
            self.not_looked_at.append(f"Names and shapes were not compared with the architecture: {error}")
            return None

    @property
    def parameters(self) -> int | None:
        """The number of logical weights, a tied matrix once; None where no header tells it."""
        if self.structure is not None and not self.structure.missing:
            return self.structure.parameters
        if any(weight.shape is None for weight in self.weights):
            return None
        return sum(math.prod(weight.shape or ()) for weight in self.weights)

    def digest_of(self, name: str) -> str | None:
        """Return a digest of the stored bytes of a tensor; None where they cannot be read."""
        tensor = self.tensors[name]
        if not self.readable(name):
            return None
        with (self.folder / tensor.file).open("rb") as file:
            file.seek(tensor.start)
            digest, left = hashlib.blake2b(), tensor.nbytes
            while left:
                piece = file.read(min(left, _PIECE))
                if not piece:
                    return None
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()

    def readable(self, name: str) -> bool:
        """Return whether the values of a tensor are on this machine, and within the file."""
        tensor = self.tensors[name]
        return self.local and tensor.start + tensor.nbytes <= self.files[tensor.file]

    @cached_property
    def _unread(self) -> frozenset[str]:
        """The names of tensors that the index places in files that are missing or damaged."""
        index = self.index or {}
        readable = set(self.weight_files) - set(self.damaged)
        return frozenset(name for name, file in index.items() if file not in readable)


def read(
    model: str | Path,
    revision: str | None = None,
    *,
    public: bool | None = None,
    progress: Progress | None = None,
) -> Subject:
    """Return the subject called `model`: a folder, a GGUF file, a default model or a hub id. Raise
    `InputError` for a name of no kind or a folder without weights, `UnavailableError` if the hub is
    unreachable."""
    what = classify(model, revision, public=public)
    if what.kind == "hub":
        return _of_hub(what, progress)
    if what.kind == "default":
        from qcore.models import packaged

        return _of_folder(packaged.prepare(what.text, progress), what.text)
    path = expanded(what.text).absolute()
    return _of_gguf(path, what.text) if what.kind == "gguf" else _of_folder(path, what.text)


def _of_folder(folder: Path, name: str) -> Subject:
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    subject = Subject(name, FOLDER, folder, files=files)
    _check_weights(subject)
    _read_settings(subject)
    for file in subject.weight_files:
        try:
            text = header_text(folder / file, regular_size(folder / file))
        except InputError as error:
            subject.damaged[file] = str(error)
            continue
        _add_header(subject, file, text)
    return subject


def _check_weights(subject: Subject) -> None:
    if not any(name.endswith((WEIGHTS, *PICKLED, ".onnx")) for name in subject.files):
        raise InputError(
            f"{subject.name} has no weights to audit: there is no safetensors, GGUF or ONNX file. Give a "
            "folder with config.json and *.safetensors, or a .gguf file."
        )


def _read_settings(subject: Subject) -> None:
    """Read the JSON files and the manifest that lie in the subject's folder."""
    others = ("quantize_config.json", "quant_config.json", "chat_template.json", ONNX_MANIFEST)
    for file in (*_SETTINGS, *others):
        if file not in subject.files:
            continue
        if not subject.local and not (subject.folder / file).exists():
            subject.not_looked_at.append(f"{file} was not read from the hub.")
            continue
        try:
            subject.settings[file] = read_json(subject.folder / file)
        except InputError as error:
            subject.damaged[file] = str(error)
    if MANIFEST in subject.files and MANIFEST not in subject.damaged:
        try:
            subject.manifest = manifests.read(subject.folder)
        except InputError as error:
            subject.damaged[MANIFEST] = str(error)


def _add_header(subject: Subject, file: str, text: bytes) -> None:
    """Add the tensors of a header, as if the file had the length that the header promises."""
    try:
        length = declared_size(text, file)
        found = parse_header(text, PurePath(file), length)
    except InputError as error:
        subject.damaged[file] = str(error)
        return
    subject.lengths[file] = length
    for name, tensor in found.items():
        if name in subject.tensors:
            subject.twice[name] = subject.tensors[name].file, file
        else:
            subject.tensors[name] = tensor


# -- GGUF ----------------------------------------------------------------------------------------------------


def _of_gguf(path: Path, name: str) -> Subject:
    subject = Subject(name, GGUF, path.parent, files={path.name: regular_size(path)})
    if gguf_header.PART.search(path.stem):
        parts = path.parent.glob(f"{gguf_header.PART.sub('', path.stem)}-*.gguf")
        subject.files |= {part.name: part.stat().st_size for part in parts}
    try:
        with path.open("rb") as file:
            _add_gguf(subject, path.name, file)
    except InputError as error:
        subject.damaged[path.name] = str(error)
    return subject


def _add_gguf(subject: Subject, file: str, opened) -> None:
    gguf_header.check_start(opened.read(24), file, subject.files[file])
    opened.seek(0)
    header = gguf_header.parse(opened, file, None)
    subject.of_gguf = header
    subject.tokens = gguf_header.texts(opened, header, "tokenizer.ggml.tokens")
    subject.tensors = {
        tensor.name: TensorInfo(tensor.type_name, tensor.shape, tensor.nbytes or 0, file, tensor.start)
        for tensor in header.tensors
    }
    subject.lengths[file] = max(
        (tensor.start + (tensor.nbytes or 0) for tensor in header.tensors), default=header.end
    )


# -- the hub -------------------------------------------------------------------------------------------------


def _of_hub(name: Name, progress: Progress | None) -> Subject:
    if progress is not None:
        progress(0, 0, f"querying the hub for {name.text}")
    commit, listed = hub.listing(name.text, name.revision)
    # loaders read the files at the top; GGUF files may lie anywhere
    files = {file: size for file, size in listed.items() if "/" not in file or file.endswith(".gguf")}
    folder = hub.about(name.text, commit, files)
    subject = Subject(name.text, FOLDER, folder or Path(), local=False, revision=commit, files=files)
    subject.not_looked_at.append(
        "Only headers and settings were read from the hub: the values of weights and scales were not looked "
        "at."
    )
    _read_settings(subject)
    weights = subject.weight_files
    if not weights:
        return _gguf_of_hub(subject, name, commit)
    if len(weights) > MOST_FILES:
        subject.not_looked_at.append(
            f"The headers of {len(weights) - MOST_FILES} of {len(weights)} weight files were not read."
        )
        weights = weights[:MOST_FILES]

    def text_of(file: str) -> bytes | str:
        try:
            return outlines.remote_header_text(name.text, commit, file, files[file], LONGEST_HEADER)
        except InputError as error:
            return str(error)

    done = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for file, text in zip(weights, pool.map(text_of, weights), strict=True):
            if isinstance(text, str):
                subject.damaged[file] = text
            else:
                _add_header(subject, file, text)
            done += 1
            if progress is not None:
                progress(done, len(weights), f"read the header of {file}")
    return subject


def _gguf_of_hub(subject: Subject, name: Name, commit: str) -> Subject:
    found = sorted(file for file in subject.files if file.endswith(".gguf"))
    if not found:
        _check_weights(subject)
        return subject
    chosen = found[0]
    if len(found) > 1:
        subject.not_looked_at.append(
            f"The repository has {len(found)} GGUF files; only the header of {chosen} was read."
        )
    subject.kind = GGUF
    size = subject.files[chosen]
    start = outlines.read_range(name.text, commit, chosen, 0, min(size, LONGEST_HEADER))
    subject.files = {chosen: size}
    try:
        _add_gguf(subject, chosen, io.BytesIO(start))
    except QcoreError as error:
        if size > LONGEST_HEADER:
            subject.not_looked_at.append(
                f"The header of {chosen} is longer than the {LONGEST_HEADER / 1e6:.0f} MB that are read."
            )
        else:
            subject.damaged[chosen] = str(error)
    return subject

"""What every export carries besides its weights, and the folder that appears whole or not at all.

    check_room         the bytes that an export needs, before it starts
    resumed_folder     a folder that gets its name when everything is in it; finished files outlive a kill
    carry              tokenizer, chat template, generation config, the settings of a processor
    carry_licence      the files of the licence; the card itself is written by `qcore.verbs.card`
    write_marker       qcore-export.json: target, recipe, origin, SHA-256 of each file
    eos_ids            every token that ends a text
    unclaimed          stored tensors that the model's class ignores, such as heads for speculative decoding
    Shards             safetensors files of a size, with the index that counts logical weights

The files of the original are copied, not written anew: a tokenizer that a library has read and saved again is
not always the same tokenizer.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError, UnavailableError
from qcore.base.files import read_json, sha256, write_json, write_text
from qcore.base.home import check_space
from qcore.base.tensor_file import ALIGNMENT, Piece, TensorFile
from qcore.base.transformers_internals import StoredNames
from qcore.base.write_behind import WriteBehind
from qcore.library.journal import Journal
from qcore.library.saving import EXPORTED, check_folder, made_from
from qcore.models import packaged
from qcore.models.checkpoint import INDEX, SINGLE, TEMPLATES, Checkpoint
from qcore.models.config_limits import text_settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from qcore.recipes import Recipe

VERSION = 1
TEMPLATE = "chat_template.jinja"
SHARD_BYTES = 4 << 30
_SMALL_FILES = 64 << 20  # bytes for tokenizer, config and card
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_LICENCES = re.compile(r"(licen[cs]e|notice|use_policy|copying)(\b|_|\.|-)", re.IGNORECASE)
_LARGEST_TEXT = 4 << 20  # bytes of a card or a licence


# -- the folder ----------------------------------------------------------------------------------------------


def check_room(folder: Path, nbytes: int) -> None:
    """Raise `UnavailableError` if the disk of `folder` has no room for weights of `nbytes` and the other
    files. The folder need not exist."""
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    check_space(place, nbytes + _SMALL_FILES, "Exporting the model")


@contextmanager
def resumed_folder(folder: Path, *, overwrite: bool, nbytes: int, identity: dict) -> Iterator[Journal]:
    """Yield the journal of an unfinished folder, which replaces `folder` at the end. What is finished in it
    stays after an exception, so the same work, described by `identity`, continues there.

    Raise `InputError` or `UnavailableError` as `check_folder` and `check_room` do, or if a file cannot be
    written.
    """
    final = check_folder(folder, overwrite=overwrite)
    journal = Journal(final, identity)
    try:
        with journal:
            done = sum(path.stat().st_size for path in journal.folder.glob("*.safetensors"))
            check_room(folder, max(0, nbytes - done))
            yield journal
            journal.publish()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnavailableError(
                f"The disk that holds {final.parent} is full. Unfinished files are kept in {journal.folder}. "
                "Free some space and repeat the same request to resume, or remove that folder."
            ) from error
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error


def write_marker(
    folder: Path,
    *,
    target: str,
    recipe: Recipe | None,
    checkpoint: Checkpoint,
    files: Mapping[str, str | None],
    **more: Any,
) -> None:
    """Write qcore-export.json, by which qcore knows the folder as its own. `files` are the weight files,
    whose SHA-256 it holds, with that number where it is known."""
    record = {
        "version": VERSION,
        "target": target,
        "recipe": None if recipe is None else recipe.to_dict(),
        "from": made_from(checkpoint.folder) or checkpoint.origin,
        "sha256": {file: known or sha256(folder / file) for file, known in sorted(files.items())},
        **more,
    }
    write_json(folder / EXPORTED, record)


# -- the original's files ------------------------------------------------------------------------------------


def carry(checkpoint: Checkpoint, model: PreTrainedModel, folder: Path) -> tuple[str, ...]:
    """Write everything that belongs to the model besides config and weights into `folder`: tokenizer with the
    chat template in both of its places, generation config, files of the licence. Return notes on what is
    missing, one sentence each."""
    carry_tokenizer(checkpoint, folder)
    carry_processor(checkpoint, folder)
    carry_generation_config(checkpoint, model, folder)
    return carry_licence(checkpoint, folder)


def carry_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the tokenizer's files. The chat template is written where older programs look for it, in
    tokenizer_config.json, and where newer ones do, in files of its own."""
    source = checkpoint.folder
    for pattern in _TOKENIZER:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    config = read_json(source / "tokenizer_config.json")
    config = dict(config) if isinstance(config, dict) else {}
    found = chat_templates(checkpoint)
    if found:
        default = found.get("default")
        config["chat_template"] = (
            default
            if set(found) == {"default"}
            else [{"name": name, "template": text} for name, text in found.items()]
        )
        if default is not None:
            write_text(folder / TEMPLATE, default)
        for name, text in found.items():
            if name != "default":
                (folder / TEMPLATES).mkdir(exist_ok=True)
                write_text(folder / TEMPLATES / f"{name}.jinja", text)
    if config:
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False))


def carry_processor(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the settings of the processor with which a wrapper reads images or sounds."""
    for path in checkpoint.folder.glob("*processor_config.json"):
        shutil.copyfile(path, folder / path.name)


def chat_templates(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the chat templates by name; the usual one is called "default". Files of their own come before
    tokenizer_config.json, as transformers reads them."""
    source, found = checkpoint.folder, {}
    config = read_json(source / "tokenizer_config.json")
    stored = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(stored, str):
        found["default"] = stored
    elif isinstance(stored, list):
        pairs = [(each.get("name"), each.get("template")) for each in stored if isinstance(each, dict)]
        found = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    elif isinstance(stored, dict):
        found = {str(name): text for name, text in stored.items() if isinstance(text, str)}
    older = read_json(source / "chat_template.json")
    if isinstance(older, dict) and isinstance(older.get("chat_template"), str):
        found["default"] = older["chat_template"]
    if (source / TEMPLATE).is_file():
        found["default"] = (source / TEMPLATE).read_text(encoding="utf-8")
    for path in sorted((source / TEMPLATES).glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    return {name: text for name, text in found.items() if re.fullmatch(r"[\w.-]+", name)}


def carry_generation_config(checkpoint: Checkpoint, model: PreTrainedModel, folder: Path) -> None:
    """Copy generation_config.json, or write the one that the model's config implies, so that generation ends
    at the same tokens."""
    path = checkpoint.folder / "generation_config.json"
    if path.is_file():
        shutil.copyfile(path, folder / path.name)
    elif model.can_generate():
        model.generation_config.save_pretrained(folder)


def eos_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return every token that ends a text, the most usual one first: those of generation_config.json, or
    those of config.json if it names none."""
    config = checkpoint.config
    for record in (read_json(checkpoint.folder / "generation_config.json"), config, text_settings(config)):
        ids = record.get("eos_token_id") if isinstance(record, dict) else None
        ids = ids if isinstance(ids, list) else [ids]
        if found := tuple(dict.fromkeys(each for each in ids if type(each) is int and each >= 0)):
            return found
    return ()


def card(checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """Return (metadata, text) of the README.md of the model, or of the original that it was made from if that
    is a local folder; ({}, "") without one."""
    from huggingface_hub import RepoCard

    for folder in _origins(checkpoint):
        path = folder / "README.md"
        if not path.is_file() or path.stat().st_size > _LARGEST_TEXT:
            continue
        try:
            found = RepoCard(path.read_text(encoding="utf-8", errors="replace"))
        except ValueError:  # its metadata cannot be read
            return {}, path.read_text(encoding="utf-8", errors="replace")
        return found.data.to_dict(), found.text
    return {}, ""


def licence(checkpoint: Checkpoint) -> str | None:
    """Return the licence that the card of the model names, such as "apache-2.0"; None if it names none. The
    default models have no card of their own: their licence is recorded with them."""
    named = card(checkpoint)[0].get("license")
    if isinstance(named, str) and named.strip():
        return named
    origin = made_from(checkpoint.folder) or checkpoint.origin
    return packaged.LICENCE if origin["model"] in packaged.SUMMARIES else None


def carry_licence(checkpoint: Checkpoint, folder: Path) -> tuple[str, ...]:
    """Copy the files of the base's licence; return a note if no licence is known."""
    for origin in _origins(checkpoint):
        for path in sorted(origin.iterdir()):
            if path.is_file() and _LICENCES.match(path.name) and path.stat().st_size <= _LARGEST_TEXT:
                shutil.copyfile(path, folder / path.name)
    if licence(checkpoint) is None:
        return ('The model names no licence, so the card says "other". Add the licence of the original.',)
    return ()


def _origins(checkpoint: Checkpoint) -> list[Path]:
    """Return the folders that may hold licence and card: the model's, and its original's if it is here."""
    origin = made_from(checkpoint.folder)
    folders = [checkpoint.folder, *([Path(origin["model"])] if origin else [])]
    return [folder for folder in folders if folder.is_absolute() and folder.is_dir()]


# -- weights -------------------------------------------------------------------------------------------------


def unclaimed(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of the stored tensors that the model's class ignores, such as heads that predict
    further tokens. A target carries them or lists them; none may vanish."""
    from qcore.models.assembly import meta_model

    if checkpoint.is_quantized:
        return ()
    names = StoredNames(meta_model(checkpoint))
    return tuple(name for name in checkpoint.tensors if names.place(name) is None)


@dataclass(frozen=True)
class _Shard:
    file: str
    pieces: tuple[Piece, ...]


class Shards:
    """Safetensors files of about `shard_bytes` in `folder`, for tensors whose names, types and shapes are
    known before (`pieces`, in the order in which they are written; see `Entry.blank`). Use as a context
    manager; `write` each tensor in order, at once or in parts.

    With several files there is an index; it, or the metadata of a single file, holds the number of logical
    weights, `parameters`: the hub would otherwise count packed integers. Files that `journal` knows to be
    finished are not written again: see `awaits`.
    """

    def __init__(
        self,
        folder: Path,
        pieces: Sequence[Piece],
        parameters: int,
        shard_bytes: int = SHARD_BYTES,
        journal: Journal | None = None,
    ):
        self.folder, self.parameters, self.journal = folder, parameters, journal
        self.nbytes = sum(piece.nbytes for piece in pieces)
        self._shards = _cut(pieces, shard_bytes)
        self._waiting = [
            shard for shard in self._shards if journal is None or journal.finished(shard.file) is None
        ]
        self._awaited = {piece.name for shard in self._waiting for piece in shard.pieces}
        self._file: TensorFile | None = None
        self._left: dict[str, int] = {}
        self._behind = WriteBehind()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
                self._behind.wait()
        finally:
            self._behind.stop()
            if self._file is not None:
                self._file.discard()
        if kind is not None:
            return
        if self._waiting:
            raise ValueError(f"{self._waiting[0].pieces[0].name} was not written")
        if len(self._shards) > 1:
            places = {piece.name: shard.file for shard in self._shards for piece in shard.pieces}
            metadata = {"total_size": self.nbytes, "total_parameters": self.parameters}
            write_json(
                self.folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(places.items()))}
            )

    @property
    def files(self) -> dict[str, str | None]:
        """The names of the files, with the SHA-256 of those that `journal` knows to be finished."""
        finished = self.journal.finished if self.journal is not None else lambda file: None
        return {shard.file: finished(shard.file) for shard in self._shards}

    def awaits(self, name: str) -> bool:
        """Return whether the tensor `name` belongs to a file that was not finished before."""
        return name in self._awaited

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append `tensor` to the data of `name`, unless its file was finished before. Raise `OSError` if the
        disk cannot be written."""
        if name not in self._awaited:
            return
        if self._file is None or name not in self._left:
            self._finish()
            self._open()
        assert self._file is not None
        if name not in self._left:
            raise ValueError(f"{name} is not in the order of the files")
        self._behind(self._file.write, name, tensor)
        self._left[name] -= tensor.nbytes

    def _open(self) -> None:
        shard = self._waiting.pop(0)
        about = {"total_parameters": str(self.parameters)} if len(self._shards) == 1 else None
        self._file = TensorFile(self.folder / shard.file, shard.pieces, about)
        self._left = {piece.name: piece.nbytes for piece in shard.pieces}

    def _finish(self) -> None:
        if self._file is not None:
            self._behind(self._close, self._file)
        self._file, self._left = None, {}

    def _close(self, file: TensorFile) -> None:
        digest = file.close()
        if self.journal is not None:
            self.journal.note(file.path.name, digest or sha256(file.path))


def _cut(pieces: Sequence[Piece], shard_bytes: int) -> tuple[_Shard, ...]:
    groups: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if groups[-1] and size + piece.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.nbytes
    for (
        group
    ) in groups:  # whole lines of the cache first, so that readers can use tensors where they are mapped
        group.sort(key=lambda piece: piece.nbytes % ALIGNMENT > 0)
    if len(groups) == 1:
        return (_Shard(SINGLE, tuple(groups[0])),)
    return tuple(
        _Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for i, group in enumerate(groups, 1)
    )

"""A checkpoint: a folder with config.json and safetensors files, all headers validated, no weights loaded."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.files import expanded
from qcore.base.home import is_public
from qcore.models.config import is_ours, read_config
from qcore.models.config_limits import check_against
from qcore.models.headers import FLOATS, TensorInfo, is_file_name, read_header, read_json
from qcore.models.wrapped_names import unwrapped

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ONNX, ONNX_MANIFEST = (
    "onnx",
    "qcore-onnx.json",
)  # the source of a model that qcore exported as a graph, and its marker file
GGUF = "gguf"  # the source of models in GGUF files, and what `foreign` calls them
TEMPLATES = "additional_chat_templates"  # the only folder of a model's folder that is read
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_SHARD = re.compile(r".*-\d+-of-(\d+)\.safetensors")
_SAMPLE = 512  # bytes sampled at the start, middle and end of each tensor for the digest


@dataclass(frozen=True)
class Checkpoint:
    """`name`: as given by the user. `revision`: the hub's commit. `config`: config.json without the fields
    that select code. `tensors`: the stored tensors by name. `is_quantized`: the stored weights are quantized,
    by qcore with a recipe or, if `foreign` names it, by another project ("gguf", "gptq", …). `source`:
    "default", "folder", "gguf", "hub", "onnx". `description`: one or two sentences on the model's origin and
    weights.

    `digest`: SHA-256 over the config, the headers, and three samples of 512 bytes of each tensor. It is equal
    for a copy of the folder and takes milliseconds. Training changes every tensor, so the digest
    distinguishes trained models; it does not prove that weights are equal, because an edit between the
    samples goes unnoticed, and no file of the tokenizer is part of it. Where that matters, `stamp` or `key`
    is used in addition. On a public server the folder counts, too: it holds one commit of one repository.
    """

    name: str
    folder: Path
    revision: str | None
    digest: str
    config: dict
    tensors: dict[str, TensorInfo]
    is_quantized: bool
    description: str
    source: str
    foreign: str | None = None

    @property
    def origin(self) -> dict:
        """The JSON-ready record of this model in models made from it; `model` and `revision` are valid from
        any folder."""
        local = self.source in ("folder", "gguf", ONNX)
        name = str(expanded(self.name).absolute()) if local else self.name
        return {"model": name, "revision": self.revision, "digest": self.digest}

    @property
    def stamp(self) -> str:
        """SHA-256 over the size, modification time and inode of each weight file. It changes with any write
        to one of them, and with a copy.

        Unfinished work is stored under it, so it never resumes with other weights. Hashing the weights
        instead would read 15 GB for a model of 7 billion parameters before work could resume. Raise
        `InputError` if a file is gone.
        """
        files = sorted({tensor.file for tensor in self.tensors.values()})
        try:
            states = [(self.folder / file).stat() for file in files]
        except OSError as error:
            raise InputError(f"{self.name} can no longer be read: {error.strerror or error}.") from error
        return _sha256_of(zip(files, states, strict=True))

    @property
    def key(self) -> tuple[str, str, str]:
        """The key of this model in caches that several models share: the folder, the digest, and SHA-256 over
        the size, modification time and inode of each file that is read, those of the tokenizer included.

        Another model may have the same digest, because the digest covers config and samples of the weights:
        on a public server anybody can publish one. A file that is gone counts as absent.
        """
        found: dict[Path, os.stat_result] = {}
        for path in (*_listed(self.folder), *_listed(self.folder / TEMPLATES), *self._weights()):
            try:
                state = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(state.st_mode):
                found[path] = state
        states = _sha256_of((str(path), found[path]) for path in sorted(found))
        return str(self.folder.resolve()), self.digest, states

    def _weights(self) -> set[Path]:
        return {self.folder / tensor.file for tensor in self.tensors.values()}

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of logical weights, tied ones once, independent of the format."""
        from qcore.models.assembly import meta_model

        return sum(parameter.numel() for parameter in meta_model(self).parameters())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the stored tensors, by bytes, largest share first."""
        share: dict[str, int] = {}
        for tensor in self.tensors.values():
            share[tensor.dtype] = share.get(tensor.dtype, 0) + tensor.nbytes
        return tuple(sorted(share, key=share.__getitem__, reverse=True))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # it is gone, or there is none
        return []


def _sha256_of(states: Iterable[tuple[str, os.stat_result]]) -> str:
    about = [(name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in states]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def read_folder(
    folder: Path,
    name: str,
    source: str,
    description: str,
    revision: str | None = None,
    *,
    quantized: bool = False,
) -> Checkpoint:
    """Check `folder` and return its checkpoint. With `quantized` it may hold a model quantized by another
    library, for inspection only. Raise `InputError` naming the file or tensor that is wrong."""
    config, stripped = read_config(folder, quantized=quantized)
    ours = (folder / "qcore.json").exists()
    if ours != is_ours(config) and is_ours(config):
        raise InputError(
            f"{name} was saved by qcore, but its qcore.json is missing. Quantize the model again."
        )
    tensors = _read_tensors(folder)
    if not ours:
        tensors, removed = unwrapped(tensors)
        description = " ".join(filter(None, (description, removed)))
    if not ours and not quantized:
        check_against(config, tensors)
        _refuse_integers(tensors, name)
    digest = sampled_digest(folder, config, tensors)
    if stripped:
        description += f" Ignored in its config.json: {', '.join(stripped)}."
    return Checkpoint(
        name,
        folder,
        revision,
        _public_digest(digest, folder) if is_public() else digest,
        config,
        tensors,
        ours,
        description,
        source,
    )


def weight_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files that hold the weights, from the index if there is one. Raise
    `InputError` if there are none."""
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise InputError(
            f"{folder.name} has both {SINGLE} and {INDEX}, so the weights are ambiguous. Remove one of them."
        )
    if single.exists():
        return [SINGLE]
    if index.exists():
        return index_files(folder)
    others = sorted(path.name for path in folder.iterdir())
    pickled = [name for name in others if name.endswith(PICKLED) and not name.startswith("training_args")]
    safe = [name for name in others if name.endswith(".safetensors")]
    if safe and (part := _SHARD.fullmatch(safe[0])) and int(part[1]) > 1:
        raise InputError(
            f"{folder.name} has {safe[0]}, one of {int(part[1])} files, but no {INDEX}, which lists what "
            "they hold. Download it too."
        )
    if safe:
        raise InputError(
            f"{folder.name} has {safe[0]}, but neither {SINGLE} nor {INDEX}. If it is the whole model, "
            f"rename it {SINGLE}."
        )
    if pickled:
        raise InputError(
            f"{folder.name} has only pickled weights ({pickled[0]}), which can run any code when opened, so "
            "qcore refuses them. Look for a safetensors version of this model."
        )
    raise InputError(f"{folder.name} has no weights: there is neither {SINGLE} nor {INDEX}.")


def index_files(folder: Path) -> list[str]:
    """Return the names of the weight files that the index in `folder` lists. Raise `InputError` if it cannot
    be used."""
    return sorted(set(_weight_map(folder / INDEX).values()))


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{INDEX} has no weight_map, so the weights cannot be located. Download it again.")
    for tensor, file in weight_map.items():
        if not is_file_name(file) or not file.endswith(".safetensors"):
            raise InputError(
                f"{INDEX} places {tensor!r} in {file!r}, but weights are only read from .safetensors files "
                "in the same folder."
            )
    return weight_map


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    files = weight_files(folder)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        if not (folder / file).exists():
            raise InputError(f"{folder.name} lacks {file}, which {INDEX} lists. Download the model again.")
        for name, tensor in read_header(folder / file).items():
            if name in tensors:
                raise InputError(
                    f"The tensor {name!r} is in both {tensors[name].file} and {file}, so its values are "
                    "ambiguous."
                )
            tensors[name] = tensor
    if files != [SINGLE]:
        _check_index(folder, tensors, files)
    if not tensors:
        raise InputError(f"{folder.name} has no weights: its safetensors files hold no tensors.")
    return tensors


def _check_index(folder: Path, tensors: dict[str, TensorInfo], files: list[str]) -> None:
    weight_map = _weight_map(folder / INDEX)
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file != file:
            raise InputError(
                f"{INDEX} places {name!r} in {file}, which does not hold it. The files belong to different "
                "models."
            )
    if extra := sorted(set(tensors) - set(weight_map)):
        raise InputError(
            f"{tensors[extra[0]].file} holds {extra[0]!r}, which {INDEX} does not list. The files belong to "
            "different models."
        )
    shards = {path.name for path in folder.glob("model-*-of-*.safetensors")}
    if extra := sorted(shards - set(files)):
        raise InputError(f"{extra[0]} is not listed in {INDEX}. Remove it, or download the model again.")


def _refuse_integers(tensors: dict[str, TensorInfo], name: str) -> None:
    """Raise `InputError` for weights in 8-bit floats or packed integers: they are already quantized, even if
    config.json does not say so."""
    for tensor_name, tensor in tensors.items():
        packed = tensor.dtype.startswith(("F8_", "F6_", "F4")) or tensor_name.endswith(
            (".qweight", ".qzeros", ".absmax", ".weight_packed")
        )
        integers = tensor_name.endswith(".weight") and len(tensor.shape) > 1 and tensor.dtype not in FLOATS
        if packed or integers:
            raise InputError(
                f"{name} is already quantized: {tensor_name!r} is stored as {tensor.dtype}. Start from the "
                "original model instead."
            )


def _public_digest(digest: str, folder: Path) -> str:
    """Return the digest of a model on a public server, where a digest is the key of what visitors share. An
    edit between the samples, or another tokenizer, is another model there: nobody can upload a model that
    takes the place of another one."""
    return hashlib.sha256(f"{digest} {folder.absolute()}".encode()).hexdigest()


def sampled_digest(folder: Path, config: dict, tensors: dict[str, TensorInfo]) -> str:
    """`Checkpoint.digest`."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    by_place = sorted(tensors.items(), key=lambda item: (item[1].file, item[1].start))
    files: dict[str, list[tuple[str, TensorInfo]]] = {}
    for name, tensor in by_place:
        files.setdefault(tensor.file, []).append((name, tensor))
    samples = {}
    for file, members in files.items():
        with (folder / file).open("rb") as opened:
            for name, tensor in members:
                places = {0, tensor.nbytes // 2, max(0, tensor.nbytes - _SAMPLE)}
                sample = b""
                for place in sorted(places):
                    opened.seek(tensor.start + place)
                    sample += opened.read(min(_SAMPLE, tensor.nbytes - place))
                samples[name] = sample
    for name in sorted(samples):  # by name, so that the digest does not depend on the sharding
        tensor = tensors[name]
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        digest.update(samples[name])
    return digest.hexdigest()

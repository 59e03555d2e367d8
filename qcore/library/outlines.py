"""A `Checkpoint` for planning, made from headers alone: no weights are fetched or converted.

    hub id      config.json, and the beginning of each safetensors file by ranged reads
    GGUF        its own header; the tensors are those that a conversion would write
    folder      as in `resolve`, but models quantized by another library are allowed

Such a checkpoint has shapes and sizes only. To load the model, `resolve` its name.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePath

from qcore.base.errors import InputError, UnavailableError
from qcore.base.files import expanded
from qcore.base.patience import Moving
from qcore.base.progress import Progress
from qcore.library.sources import resolve
from qcore.models import hub
from qcore.models.checkpoint import Checkpoint, read_folder
from qcore.models.config import LOW_PRECISION, is_ours, quantized_by, read_config, without_quantization
from qcore.models.config_limits import check_against
from qcore.models.headers import LONGEST_HEADER, TensorInfo, parse_header
from qcore.models.names import Name, classify
from qcore.models.unread import count_unread
from qcore.models.wrapped_names import unwrapped

_FIRST = 1 << 17  # bytes read from each file; most headers are shorter
_AT_ONCE = 8  # files
_PATIENCE = 10  # seconds for an answer


def outline(
    name: str | Path,
    revision: str | None = None,
    *,
    public: bool | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Return the checkpoint of the model called `name`, from headers and config alone. A default model is
    downloaded if needed.

    Raise `InputError` and `UnavailableError` as `resolve` does.
    """
    what = classify(name, revision, public=public)
    if what.kind == "hub":
        return _from_hub(what, progress)
    if what.kind == "gguf":
        from qcore.models import gguf_checkpoint

        return gguf_checkpoint.outline(expanded(what.text).absolute(), what.text)
    if what.kind == "folder" and (foreign := _foreign(expanded(what.text).absolute(), what.text)):
        return foreign
    return resolve(name, revision, public=public, progress=progress)


def is_foreign(checkpoint: Checkpoint) -> bool:
    """Return whether another library quantized the model, so that it can be inspected but not loaded."""
    return checkpoint.is_quantized and not is_ours(checkpoint.config)


def _foreign(folder: Path, name: str) -> Checkpoint | None:
    """Return the checkpoint of a folder that another library quantized, or None for any other folder."""
    if not (folder / "config.json").is_file():
        return None
    config, _ = read_config(folder, quantized=True)
    method = quantized_by(config, folder)
    return (
        None
        if method is None
        else _as_it_is(read_folder(folder, name, "folder", "A local folder.", quantized=True), method)
    )


def _as_it_is(checkpoint: Checkpoint, method: str) -> Checkpoint:
    if method in LOW_PRECISION:
        return _dequantized(checkpoint, method)
    note = f" It was quantized by another library ({method}). Recipes start from the original model."
    return replace(checkpoint, is_quantized=True, description=checkpoint.description + note)


def _dequantized(checkpoint: Checkpoint, method: str) -> Checkpoint:
    """Return the checkpoint that dequantizing `checkpoint` gives; see `widened.py`."""
    from qcore.models import foreign_folder

    description = (
        f"{checkpoint.description} Its files hold {method}, {checkpoint.nbytes / 1e6:,.0f} MB. They are "
        "dequantized when used, and the loss of a recipe adds to their own."
    )
    return replace(
        checkpoint,
        digest=f"values of {checkpoint.digest}",
        config=without_quantization(checkpoint.config),
        tensors=foreign_folder.values(checkpoint),
        description=description,
    )


def _from_hub(name: Name, progress: Progress | None) -> Checkpoint:
    if progress is not None:
        progress(0, 0, f"querying the hub for {name.text}")
    folder, commit, sizes = hub.look(name.text, name.revision)
    config, stripped = read_config(folder, quantized=True)
    tensors: dict[str, TensorInfo] = {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(sizes))) as pool:
        for found in pool.map(lambda file: remote_header(name.text, commit, file, sizes[file]), sizes):
            for tensor, info in found.items():
                if tensor in tensors:
                    raise InputError(
                        f"The tensor {tensor!r} is in both {tensors[tensor].file} and {info.file}."
                    )
                tensors[tensor] = info
    method = quantized_by(config, folder)
    ours = is_ours(config)
    removed = ""
    if not ours:
        tensors, removed = unwrapped(tensors)
    if method is None and not ours:
        check_against(config, tensors)
    described = json.dumps(
        [config, {key: (info.dtype, info.shape) for key, info in sorted(tensors.items())}], sort_keys=True
    )
    description = f"On the hub at commit {commit[:12]}; only its headers were read." + (
        f" Ignored in its config.json: {', '.join(stripped)}." if stripped else ""
    )
    description += f" {removed}" if removed else ""
    checkpoint = Checkpoint(
        name.text,
        folder,
        commit,
        f"headers-{hashlib.sha256(described.encode()).hexdigest()}",
        config,
        tensors,
        ours,
        description,
        "hub",
    )
    return count_unread(checkpoint) if method is None else _as_it_is(checkpoint, method)


def remote_header(repo_id: str, commit: str, file: str, size: int) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file on the hub."""
    return parse_header(remote_header_text(repo_id, commit, file, size), PurePath(file), size)


def remote_header_text(
    repo_id: str, commit: str, file: str, size: int, longest: int = LONGEST_HEADER
) -> bytes:
    """Return the JSON of the header, of at most `longest` bytes, of a safetensors file on the hub, by one
    ranged read, or two if the header is long."""
    start = read_range(repo_id, commit, file, 0, min(_FIRST, size))
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length < 2 or length > min(size - 8, longest):
        raise InputError(
            f"{file} of {repo_id} is not a valid safetensors file: its header would be {length} bytes long "
            f"in a file of {size}."
        )
    if len(start) < 8 + length:
        start += read_range(repo_id, commit, file, len(start), 8 + length)
    return start[8 : 8 + length]


def read_range(repo_id: str, commit: str, file: str, first: int, end: int) -> bytes:
    """Return the bytes `first` to `end` of a file on the hub. If the server ignores the range, stop reading
    after `end` bytes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    part = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
    headers = build_hf_headers(token=hub.access()) | part

    def read_bytes(moving: Moving) -> tuple[bytes, int]:
        with get_session().stream(
            "GET", hf_hub_url(repo_id, file, revision=commit), headers=headers, timeout=_PATIENCE
        ) as answer:
            hf_raise_for_status(answer)
            skip = first if answer.status_code == 200 else 0
            read = b""
            for piece in answer.iter_bytes():
                moving(len(piece))
                read += piece
                if len(read) >= skip + end - first:
                    break
        return read, skip

    read, skip = hub.ask(read_bytes, repo_id, commit)
    if len(read) < skip + end - first:
        raise UnavailableError(f"The hub returned fewer bytes of {file} than requested. Try again later.")
    return read[skip : skip + end - first]

"""A GGUF file as a checkpoint, by its header alone: with its own codes, or as the original that a conversion
would give.

Settings and tokenizer are converted by transformers once, and kept in the cache folder under the SHA-256 of
the file's settings. The weights stay where they are.
"""

import hashlib
import json
import tempfile
from pathlib import Path

from qcore.base.files import write_json
from qcore.base.home import build_folder, home
from qcore.base.progress import Progress
from qcore.base.transformers_internals import quiet
from qcore.interop.ggml import FORMATS
from qcore.models import gguf_file, gguf_header
from qcore.models.checkpoint import GGUF, Checkpoint, sampled_digest
from qcore.models.config import to_transformers
from qcore.models.config_limits import check_against
from qcore.models.gguf_config import config_of
from qcore.models.gguf_header import Header
from qcore.models.gguf_weights import keeps_codes
from qcore.models.headers import TensorInfo


def as_stored(path: Path, name: str, progress: Progress | None = None) -> Checkpoint | None:
    """Return the checkpoint of the GGUF file `path`; None if its codes cannot be kept, because it is in
    floating point or its architecture is not one of `gguf_weights.ARCHITECTURES`.

    Raise `InputError` for a damaged file, `UnavailableError` if the cache folder cannot be written.
    """
    gguf_header.check(path)
    header = gguf_header.read(path)
    if not keeps_codes(header):
        return None
    config = config_of(path, header)
    tensors = {
        tensor.name: TensorInfo(tensor.type_name, tensor.shape, tensor.nbytes or 0, str(path), tensor.start)
        for tensor in header.tensors
    }
    check_against(config, tensors)
    gguf_file.check_all_read(path, header, config)
    folder = _settings(path, header, config, progress)
    words = f"A GGUF file quantized as {', '.join(header.quantized_types)}, with its own codes."
    if wide := [kind for kind in header.quantized_types if kind not in FORMATS]:
        words += f" Tensors in {', '.join(wide)} are dequantized to fp32: no format of qcore holds them."
    return Checkpoint(
        name,
        folder,
        None,
        sampled_digest(folder, config, tensors),
        config,
        tensors,
        True,
        words,
        "gguf",
        GGUF,
    )


def _settings(path: Path, header: Header, config: dict, progress: Progress | None) -> Path:
    """Return the folder with config and tokenizer of the file, converted unless they were before."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    with path.open("rb") as file:
        digest.update(file.read(header.end))

    def build(folder: Path) -> None:
        if progress is not None:
            progress(0, 0, f"converting the tokenizer of {path.name}")
        with tempfile.TemporaryDirectory(prefix="qcore-gguf-") as scratch:
            small = Path(scratch) / path.name
            gguf_header.write_small(path, header, small)
            tokenizer = gguf_file.load_tokenizer(small)
        with quiet():
            tokenizer.save_pretrained(folder)
        write_json(folder / "config.json", config)

    final = home() / "models" / f"gguf-settings-{digest.hexdigest()[:24]}"
    return build_folder(final, build, progress=progress)


def outline(path: Path, name: str) -> Checkpoint:
    """Return the checkpoint, in fp32, that a conversion of `path` would give. Only headers are read. Raise
    `InputError`."""
    from qcore.layers.inventory import inventory
    from qcore.models.assembly import empty_model

    gguf_header.check(path)
    found = gguf_header.read(path)
    config = config_of(path, found)
    check_against(
        config, {tensor.name: TensorInfo("F32", tensor.shape, 0, path.name, 0) for tensor in found.tensors}
    )
    gguf_file.check_all_read(path, found, config)
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


def _describe(path: Path, header: Header) -> str:
    types = header.quantized_types
    size = f"{path.stat().st_size / 1e6:,.0f} MB on disk"
    if not types:
        return f"A GGUF file in floating point, {size}; it is converted to fp32 when it is used."
    return (
        f"A GGUF file quantized as {', '.join(types)}, {size}. It is dequantized to fp32 when used, and the "
        "loss of a recipe adds to its own."
    )

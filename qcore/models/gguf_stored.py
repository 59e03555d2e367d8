"""A quantized GGUF file as a checkpoint with its own codes: opened by its header, no weights converted.

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
from qcore.models.config import check_against
from qcore.models.gguf_header import Header
from qcore.models.gguf_weights import keeps_codes
from qcore.models.headers import TensorInfo

_END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read(path: Path, name: str, progress: Progress | None = None) -> Checkpoint | None:
    """Return the checkpoint of the GGUF file `path`; None if its codes cannot be kept, because it is in
    floating point or its architecture is not one of `gguf_weights.ARCHITECTURES`.

    Raise `InputError` for a damaged file, `UnavailableError` if the cache folder cannot be written.
    """
    gguf_file.check(path)
    header = gguf_header.read(path)
    if not keeps_codes(header):
        return None
    config = gguf_header.config_of(path, header) | _token_ids(header)
    tensors = {
        tensor.name: TensorInfo(tensor.type_name, tensor.shape, tensor.nbytes or 0, str(path), tensor.start)
        for tensor in header.tensors
    }
    check_against(config, tensors)
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


def _token_ids(header: Header) -> dict:
    """Return the ids of the special tokens, as in a config: one id, or a list of all that end a text."""
    ids = {key: header.number(f"tokenizer.ggml.{key}") for key in (*_END_IDS, "bos_token_id")}
    ids["pad_token_id"] = header.number("tokenizer.ggml.padding_token_id")
    ends = list(dict.fromkeys(ids.pop(key) for key in _END_IDS if ids.get(key) is not None))
    found = {key: value for key, value in ids.items() if value is not None and key not in _END_IDS}
    return found | ({"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {})

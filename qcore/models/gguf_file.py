"""GGUF files (the format of llama.cpp), dequantized and converted to safetensors once, keyed by the file's
SHA-256.

Most GGUF files are quantized. qcore then measures the additional loss of its recipes, and the description
says so.
"""

import json
import re
import struct
from pathlib import Path
from typing import Any

from qcore.base.errors import InputError
from qcore.base.files import sha256, write_json
from qcore.base.home import build_folder, check_space, home
from qcore.base.progress import Progress
from qcore.base.transformers_internals import quiet, without_conversion_bar
from qcore.models.headers import regular_size

SOURCE = "source.json"  # a file beside the converted weights that records their origin
_MOST_ENTRIES = 1 << 20
PART = re.compile(r"-(\d{5})-of-(\d{5})$")  # llama.cpp's file names of a split model
PLAIN = ("F64", "F32", "F16", "BF16")


def prepare(path: Path, progress: Progress | None = None) -> tuple[Path, str]:
    """Return the folder with the converted `path`, converting it unless it was before, and a description.
    Raise `InputError` or `UnavailableError`."""
    check(path)
    if progress is not None:
        progress(0, 0, f"reading {path.name}")
    digest = sha256(path)
    final = home() / "models" / f"gguf-{digest[:24]}"
    build_folder(final, lambda folder: convert(path, folder, {"sha256": digest}, progress), progress=progress)
    record = read_source(final)
    if record["types"]:
        return final, (
            f"A GGUF file quantized as {', '.join(record['types'])} and dequantized to fp32: its weights "
            "already contain that loss, and results here show the additional loss of a recipe."
        )
    return final, "A GGUF file in floating point, converted to fp32."


def check(path: Path) -> None:
    """Check the first 24 bytes. Raise `InputError` if the file is not a GGUF file, or is one part of
    several."""
    size = regular_size(path)
    with path.open("rb") as file:
        check_start(file.read(24), path.name, size)
    if (part := PART.search(path.stem)) and int(part[2]) > 1:
        raise InputError(
            f"{path.name} is one of {int(part[2])} parts. Merge them into one file with `llama-gguf-split "
            "--merge` first."
        )


def check_start(start: bytes, name: str, size: int) -> None:
    """Check the first 24 bytes, `start`, of the file `name` of `size` bytes. Raise `InputError` if they do
    not begin a GGUF file."""
    if len(start) < 24 or start[:4] != b"GGUF":
        raise InputError(f"{name} is not a GGUF file: it does not begin with the letters GGUF.")
    version, tensors, entries = struct.unpack("<IQQ", start[4:])
    if version not in (2, 3):
        raise InputError(f"{name} is GGUF version {version}; versions 2 and 3 (little-endian) can be read.")
    if not 0 < tensors <= min(_MOST_ENTRIES, size) or entries > min(_MOST_ENTRIES, size):
        raise InputError(
            f"{name} declares {tensors} tensors and {entries} entries in {size} bytes, so it is damaged."
        )


def convert(path: Path, folder: Path, record: dict, progress: Progress | None = None) -> None:
    """Write the model and tokenizer of the GGUF file `path` into `folder` as fp32 safetensors, with `record`
    as source.json.

    Raise `InputError` for an architecture that transformers cannot take from GGUF, or a damaged file.
    """

    def report(done: int, what: str) -> None:
        if progress is not None:
            progress(done, 4, what)

    report(0, f"reading {path.name}")
    elements, types = _inspect(path)
    config = _scaled_config(path)
    check_space(folder, 4 * elements, f"Converting {path.name}")
    report(1, "dequantizing the weights")
    model = _load_model(path, config)
    report(2, "converting the tokenizer")
    tokenizer = load_tokenizer(path)
    report(3, "writing safetensors")
    _save(model, tokenizer, folder)
    write_json(folder / SOURCE, {**record, "types": types})
    report(4, "converted")


def read_source(folder: Path) -> dict:
    """Return the record of a folder's origin that `convert` wrote."""
    return json.loads((folder / SOURCE).read_text())


def _inspect(path: Path) -> tuple[int, list[str]]:
    """Return the number of weights, and the quantized types among the tensors."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        types = sorted({tensor.tensor_type.name for tensor in reader.tensors} - set(PLAIN))
        return sum(int(tensor.n_elements) for tensor in reader.tensors), types
    except Exception as error:  # the reader does not validate the file and may raise anything
        raise InputError(
            f"{path.name} cannot be read as GGUF, so it is damaged or cut short: {error}"
        ) from error


def _scaled_config(path: Path) -> Any:
    """Return the config of a file with a scaled rotary embedding, which transformers ignores; None for any
    other file."""
    from qcore.models import gguf_header
    from qcore.models.config import to_transformers

    header = gguf_header.read(path)
    if not gguf_header.rope_scaling(path, header):
        return None
    return to_transformers(gguf_header.config_of(path, header))


def _load_model(path: Path, config: Any = None):
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        with quiet(), without_conversion_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                **({} if config is None else {"config": config}),
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # as above: an invalid file may raise anything
        raise InputError(f"{path.name} cannot be converted: {str(error).strip().splitlines()[0]}") from error
    model, report = loaded
    if lost := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise InputError(
            f"{path.name} cannot be converted: the weights of {lost[0]} are missing or have another shape."
        )
    return model


def load_tokenizer(path: Path):
    """Return the tokenizer in the GGUF file `path`, converted. Raise `InputError` if that fails."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    except Exception as error:  # as above
        raise InputError(
            f"The tokenizer in {path.name} cannot be converted: {str(error).strip().splitlines()[0]}"
        ) from error


def _save(model, tokenizer, folder: Path) -> None:
    with quiet():
        model.save_pretrained(folder, max_shard_size="1TB")
        tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if "quantization_config" in config:
        raise RuntimeError("a converted model must not look quantized")

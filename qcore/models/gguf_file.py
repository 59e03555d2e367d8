"""GGUF files (the format of llama.cpp), dequantized and converted to safetensors once, keyed by the file's
SHA-256.

Most GGUF files are quantized. qcore then measures the additional loss of its recipes, and the description
says so.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from qcore.base.errors import InputError
from qcore.base.files import sha256, write_json
from qcore.base.home import build_folder, check_space, home
from qcore.base.progress import Progress
from qcore.base.transformers_internals import gguf_tensor_names, quiet, without_conversion_bar
from qcore.models import gguf_header
from qcore.models.assembly import empty_model
from qcore.models.config import to_transformers
from qcore.models.gguf_config import config_of, differs_from_library, knows
from qcore.models.gguf_header import Header

SOURCE = "source.json"  # a file beside the converted weights that records their origin


def prepare(path: Path, progress: Progress | None = None) -> tuple[Path, str]:
    """Return the folder with the converted `path`, converting it unless it was before, and a description.
    Raise `InputError` or `UnavailableError`."""
    gguf_header.check(path)
    header = gguf_header.read(path)
    found = config_of(path, header)
    check_all_read(path, header, found)
    config = _own(header, found)
    if progress is not None:
        progress(0, 0, f"reading {path.name}")
    digest = sha256(path)
    key = digest if config is None else hashlib.sha256(f"{digest} {json.dumps(config)}".encode()).hexdigest()
    final = home() / "models" / f"gguf-{key[:24]}"
    build_folder(final, lambda folder: convert(path, folder, {"sha256": digest}, progress), progress=progress)
    record = read_source(final)
    if record["types"]:
        return final, (
            f"A GGUF file quantized as {', '.join(record['types'])} and dequantized to fp32: its weights "
            "already contain that loss, and results here show the additional loss of a recipe."
        )
    return final, "A GGUF file in floating point, converted to fp32."


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
    header = gguf_header.read(path)
    found = config_of(path, header)
    check_all_read(path, header, found)
    config = _own(header, found)
    check_space(folder, 4 * elements, f"Converting {path.name}")
    report(1, "dequantizing the weights")
    model = _load_model(path, header, config)
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
        types = sorted({tensor.tensor_type.name for tensor in reader.tensors} - set(gguf_header.PLAIN))
        return sum(int(tensor.n_elements) for tensor in reader.tensors), types
    except Exception as error:  # the reader does not validate the file and may raise anything
        raise InputError(
            f"{path.name} cannot be read as GGUF, so it is damaged or cut short: {error}"
        ) from error


def check_all_read(path: Path, header: Header, config: dict[str, Any]) -> None:
    """Raise `InputError` for a tensor that has no place in the model of `config`. Only headers are read."""
    from qcore.models import gguf_weights  # here, because the command line's help loads no torch

    model = empty_model(to_transformers(config), meta_buffers=True)
    if knows(header):
        gguf_weights.weights(path, header, model)
        return
    try:
        known = gguf_tensor_names(model, header.architecture)
    except Exception:  # the library does not load such a file; its conversion fails with the reason
        return
    for tensor in header.tensors:
        if tensor.name not in known and "_exps." not in tensor.name:
            raise InputError(
                f"{path.name} holds {tensor.name}, which has no place in a {config['model_type']} model."
            )


def _own(header: Header, config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the `config` of a file with settings that transformers leaves out; None for any other file."""
    return config if knows(header) and differs_from_library(config) else None


def _load_model(path: Path, header: Header, config: dict[str, Any] | None):
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from qcore.models import gguf_weights

    try:
        with quiet(), without_conversion_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                **({} if config is None else {"config": to_transformers(config)}),
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that mismatches are reported by name
            )
    except Exception as error:  # as above: an invalid file may raise anything
        raise InputError(f"{path.name} cannot be converted: {str(error).strip().splitlines()[0]}") from error
    model, report = loaded
    if mismatched := sorted(report["mismatched_keys"], key=str):
        name, stored, wanted = mismatched[0][:3]
        raise InputError(
            f"{path.name} cannot be converted: {name} has the shape {tuple(stored)}, but its settings demand "
            f"{tuple(wanted)}."
        )
    zero = gguf_weights.absent_biases(header, model) if knows(header) else []
    for name in zero:
        torch.nn.init.zeros_(model.get_parameter(name))
    if lost := sorted(set(report["missing_keys"]) - set(zero)):
        raise InputError(f"{path.name} cannot be converted: the weights of {lost[0]} are missing.")
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

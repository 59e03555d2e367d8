"""Loads weights from validated files into a model that computes in fp32.

fp32 weights stay memory-mapped: they take page cache, which the system can drop and read again. 16-bit
weights are widened, because processors without 16-bit hardware compute hundreds of times slower in 16 bits.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.library import tokenizer_files
from qcore.library.finite import require_finite
from qcore.library.sources import resolve
from qcore.measurement.memory import give_back
from qcore.models.assembly import assemble, meta_model
from qcore.models.checkpoint import ONNX, Checkpoint
from qcore.models.headers import LONGEST_SETTINGS, read_json
from qcore.models.mapping import read_tensors

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qcore.recipes import Recipe
    from qcore.recipes.ledger import Ledger


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode with its tokenizer. `recipe` and `ledger` are set if it is quantized,
    None otherwise."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    checkpoint: Checkpoint
    recipe: Recipe | None = None
    ledger: Ledger | None = None


def load(
    name: str | Path | Checkpoint,
    revision: str | None = None,
    *,
    device: str = "cpu",
    check_finite: bool = True,
    progress: Progress | None = None,
) -> Loaded:
    """Load a model by name (see `resolve`) or from a `Checkpoint`, in fp32 on `device`.

    Raise `InputError` if the model is invalid; with `check_finite`, also for a NaN or infinite weight, naming
    the first. Call `qcore.planning.check_fits` before, to check that the model fits into memory.
    """
    checkpoint = name if isinstance(name, Checkpoint) else resolve(name, revision, progress=progress)
    if checkpoint.source == ONNX:
        from qcore.library import onnx_folder

        if device != "cpu":
            raise InputError(
                f"{checkpoint.name} is an ONNX graph, which runs on the CPU here. Leave out the device "
                f"{device!r}."
            )
        return onnx_folder.load(checkpoint, load_tokenizer(checkpoint))
    if checkpoint.foreign is not None:
        from qcore.library import foreign

        tokenizer = load_tokenizer(checkpoint)
        model, ledger, recipe = foreign.load(checkpoint, progress)
        set_generation_config(model, checkpoint.folder)
        if device != "cpu":  # moving a model restores its packed weights
            cast("nn.Module", model).to(device)
        return Loaded(model, tokenizer, checkpoint, recipe, ledger)
    if checkpoint.is_quantized:
        from qcore.library import safetensors

        saved = safetensors.begin(checkpoint.folder)  # the weights are hashed while the tokenizer loads
        tokenizer = load_tokenizer(checkpoint)
        model, ledger, recipe = saved.finish()
        cast("nn.Module", model).to(device)  # in place; the method of transformers has no usable type
        return Loaded(model, tokenizer, checkpoint, recipe, ledger)
    tokenizer = load_tokenizer(checkpoint)
    meta_model(checkpoint)
    tensors = read_tensors(checkpoint)
    if check_finite:
        for i, (tensor_name, tensor) in enumerate(tensors.items()):
            if progress is not None:
                progress(i, len(tensors), "reading weights")
            require_finite(tensor_name, tensor)
    model = assemble(checkpoint, tensors, device)
    set_generation_config(model, checkpoint.folder)
    return Loaded(model, tokenizer, checkpoint)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Return the tokenizer in the checkpoint's folder. Raise `InputError` if there is none or it cannot be
    read."""
    from transformers import AutoTokenizer

    folder = checkpoint.folder
    collects = gc.isenabled()
    # a vocabulary is parsed into 100,000 lists; without this the garbage collector would scan all objects
    # again and again
    gc.disable()
    try:
        tokenizer_files.check(folder, checkpoint.name)
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            config=_tokenizer_hint(checkpoint),
            trust_remote_code=False,
            local_files_only=True,
            **tokenizer_files.overrides(folder),
        )
    except InputError:
        raise
    except BaseException as error:  # native code parses tokenizer files; its panics are no `Exception`s
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"The tokenizer of {checkpoint.name} cannot be read: {tokenizer_files.reason(error)}"
        ) from error
    finally:
        if collects:
            gc.enable()
        give_back()  # 31 MB after a vocabulary of 49,152 tokens (glibc 2.36, 2026-11-30)
    return tokenizer_files.settle(tokenizer, folder, checkpoint.name)


def _tokenizer_hint(checkpoint: Checkpoint):
    """Return the checked config, so that the library does not read the untrusted config.json itself."""
    from qcore.models.config import to_transformers

    return to_transformers(checkpoint.config)


def set_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Give `model` the generation_config.json of `folder`, if there is one. Raise `InputError` if it cannot
    be read."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").exists():
        return
    _check_token_ids(read_json(folder / "generation_config.json", LONGEST_SETTINGS))
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library compares and calls what the file holds, so anything may fail
        raise InputError(
            f"generation_config.json cannot be read: {tokenizer_files.reason(error).rstrip('.')}. Correct "
            "the file."
        ) from error


def _check_token_ids(settings: dict) -> None:
    """Raise `InputError` for the id of a special token that is not a whole number or a list of them: no token
    would ever be equal to a text."""
    for name, value in settings.items():
        if not name.endswith("_token_id") or value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if any(type(each) is not int for each in ids):
            raise InputError(
                f"generation_config.json has {name} = {value!r}, but ids of tokens are whole numbers. "
                "Correct the file."
            )
        if isinstance(value, list) and name != "eos_token_id":
            raise InputError(
                f"generation_config.json has {name} = {value!r}, but it must be one whole number."
            )

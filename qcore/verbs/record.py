"""The common part of all records: model, text, machine, libraries, the kernels that ran, and the command that
repeats the measurement."""

from __future__ import annotations

import re
import shlex
import time
from typing import TYPE_CHECKING

from qcore.formats.kv import NONE, KVFormat, kept_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qcore.base.texts import Text
    from qcore.library import Loaded
    from qcore.measurement.throughput import Throughput

LONGEST_NAME = 80


def describe(loaded: Loaded, text: Text | None = None, threads: int | None = None) -> dict:
    """Return the common part of a record: model, text, machine and libraries."""
    import torch

    import qcore
    from qcore.layers.text_part import computing_type
    from qcore.measurement.environment import environment

    checkpoint = loaded.checkpoint
    about = {
        "qcore": qcore.__version__,
        "model": checkpoint.name,
        "model_description": checkpoint.description,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "digest": checkpoint.digest,
        "parameters": checkpoint.parameters,
        "compute_dtype": str(computing_type(loaded.model)).removeprefix("torch."),
        "threads": threads or torch.get_num_threads(),
        "environment": environment(),
    }
    return about if text is None else about | {"text": text.record}


def execution(model: PreTrainedModel, kv: KVFormat | None = None) -> list[str]:
    """Return how `model` runs with a cache in the form `kv`: whether a step is one native call, and one line
    per kernel that multiplies by quantized weights. Empty if all layers are plain torch layers and the cache
    is not quantized."""
    from qcore import runtime
    from qcore.kernels.dispatch import explain
    from qcore.layers.modules import QuantExperts, QuantLinear

    layers = [
        (layer, module.activations)
        for module in model.modules()
        if isinstance(module, QuantLinear | QuantExperts)
        for layer in (module.matrices() if isinstance(module, QuantExperts) else (module,))
    ]
    kernels = {explain(layer.packed or layer.quantized, activations) for layer, activations in layers}
    if kv is not None:
        first = f"module by module: the native step does not read a cache in {kv.name}."
        kept = ", ".join(f"{count} {kind}" for kind, count in sorted(kept_layers(model.config).items()))
        return [f"{first} Layers that keep theirs: {kept}." if kept else first, *sorted(kernels)]
    return [runtime.explain(model), *sorted(kernels)] if layers else []


def kv_record(kv: KVFormat | None, speed: Throughput) -> dict:
    """Return the form of keys and values during the measurement of `speed`, and their stored bytes, including
    spare capacity."""
    each = speed.cache_bytes / speed.cache_tokens if speed.cache_bytes and speed.cache_tokens else None
    return {**kv_format(kv), "bytes": speed.cache_bytes, "tokens": speed.cache_tokens, "bytes_a_token": each}


def kv_format(kv: KVFormat | None) -> dict:
    """Return the format of the key-value cache as a dictionary; "none" for an unquantized cache."""
    return {"name": NONE} if kv is None else kv.to_dict()


def stored_bytes(loaded: Loaded) -> int:
    """Return the bytes of the unique storages of the loaded model."""
    return ledger_of(loaded).stored_bytes


def ledger_of(loaded: Loaded):
    """Return the saved ledger, or the ledger of an unchanged model."""
    from qcore.layers.inventory import as_it_is

    return loaded.ledger or as_it_is(loaded.model, "as loaded")


def recipe_of(loaded: Loaded) -> dict | None:
    """Return the recipe of a saved quantized model as a dictionary, None for any other model."""
    return loaded.recipe.to_dict() if loaded.recipe else None


def times(began: float, words: list[str]) -> dict:
    """Return the times at which a measurement began and ended, and the command (`words` after `qcore`) that
    repeats it."""
    if len(words) > 1 and words[1].startswith("-"):  # a name that would be taken for an option
        words = [words[0], *words[2:], "--", words[1]]
    command = shlex.join(["python", "-m", "qcore", *words])
    return {"started_at": began, "finished_at": time.time(), "command": command}


def options(**values) -> list[str]:
    """Return command-line options for the values that are set; `kv` counts as set unless it is "none", and
    `device` unless it is "cpu"."""
    unset = {"kv": NONE, "device": "cpu"}
    return [
        word
        for name, value in values.items()
        if value is not None and value != unset.get(name)
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def safe_name(model: str, recipe: str) -> str:
    """Return a folder name for a model and a recipe that is valid on every system: lower-case letters,
    digits, dots and hyphens.

    >>> safe_name("../../Org/Some Model", "int4-g64")
    'some-model-int4-g64'
    """
    stem = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower()
    stem = re.sub(r"[^a-z0-9.]+", "-", stem).strip("-.")[:LONGEST_NAME] or "model"
    return f"{stem}-{recipe}"  # the recipe keeps the name from being a reserved device name

"""Targets of `export`: the projects for whose code a model can be written.

    TARGETS        name -> `TargetInfo`, known without importing anything heavy
    load(name)     -> `Target`: checks a model and a recipe before any work, then writes the folder

A target is one module of this room with a `TARGET`, and one line in the table. Everything that targets have
in common is in `companions.py`; the weights come one by one from `parameters.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from qcore.base.progress import Progress
from qcore.base.registry import unknown

if TYPE_CHECKING:
    from qcore.library.parameters import Entry, Parameters
    from qcore.models.checkpoint import Checkpoint
    from qcore.recipes import Recipe


@dataclass(frozen=True)
class TargetInfo:
    """A target as users see it: its `name` after `--to`, its `title`, the programs that read the result
    (`words`), the module that holds `TARGET`, recipes to offer (`recipes`), and a command that runs the
    result (`usage`, with the placeholders {folder} and {file})."""

    name: str
    title: str
    words: str
    module: str
    recipes: tuple[str, ...] = ()
    usage: str = ""


_LISTED = (
    TargetInfo(
        "onnx",
        "ONNX",
        "ONNX Runtime",
        "qcore.library.onnx_folder",
        ("int4-g64", "int4-g64-gptq", "onnx-int8", "fp32"),
        "python {folder}/run_onnx.py --prompt 'Once upon a time'",
    ),
    TargetInfo(
        "gguf",
        "GGUF",
        "llama.cpp, Ollama, LM Studio",
        "qcore.library.gguf_folder",
        (
            "gguf-q4_k_m",
            "gguf-q4_0",
            "gguf-q4_0-gptq",
            "gguf-q4_1-gptq",
            "gguf-iq4_nl-gptq",
            "gguf-q8_0",
            "bf16",
        ),
        "llama-cli -m {file}",
    ),
    TargetInfo(
        "compressed-tensors",
        "compressed-tensors",
        "vLLM, SGLang, transformers",
        "qcore.library.compressed_tensors_folder",
        ("int4-g64", "int4-g64-gptq", "int4-g32-sym-gptq", "int8"),
        "vllm serve {folder}",
    ),
    TargetInfo(
        "gptq",
        "GPTQ",
        "GPTQModel, transformers, vLLM",
        "qcore.library.gptq_folder",
        ("int4-g64-gptq", "int4-g64", "int4-g32-sym-gptq"),
        "vllm serve {folder}",
    ),
    TargetInfo(
        "gptq-v1",
        "GPTQ, version 1",
        "older readers of GPTQ",
        "qcore.library.gptq_v1_folder",
        ("int4-g64-sym-gptq", "int4-g64-sym"),
    ),
    TargetInfo(
        "awq",
        "AWQ",
        "transformers, vLLM",
        "qcore.library.awq_folder",
        ("int4-g64", "int4-g64-gptq"),
        "vllm serve {folder}",
    ),
    TargetInfo(
        "bnb",
        "bitsandbytes",
        "transformers, vLLM",
        "qcore.library.bitsandbytes_folder",
        ("nf4-g64", "nf4-g64-gptq", "fp4-g64", "int8"),
        "vllm serve {folder}",
    ),
    TargetInfo(
        "mlx",
        "MLX",
        "mlx-lm, LM Studio",
        "qcore.library.mlx_folder",
        ("gguf-q4_1", "gguf-q4_1-gptq"),
        "mlx_lm.generate --model {folder} --prompt 'Once upon a time'",
    ),
)
TARGETS: dict[str, TargetInfo] = {info.name: info for info in _LISTED}


@dataclass(frozen=True)
class Exported:
    """The result of an export: weight `files` in the folder, their `stored_bytes`, the bits per logical
    weight, and `notes`, one sentence each, on everything that is not as requested or that a reader of the
    files must know. `agreement` is the deviation of the logits, if the target computed them."""

    recipe: str
    stored_bytes: int
    bits_per_weight: float
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    agreement: dict | None = None


class Target(ABC):
    """One target. Methods raise `InputError` with the property that the target cannot express, and the
    nearest recipe that fits."""

    name: ClassVar[str]
    streams: ClassVar[bool] = True  # `save` reads one tensor at a time, so the model may exceed the memory

    def available(self) -> None:  # noqa: B027 (most targets need no package)
        """Raise `UnavailableError` if a package that the export itself needs is missing."""

    def source(self, recipe: Recipe) -> Recipe | None:
        """Return qcore's recipe that the model must be quantized with before it is written; None if it is
        written from its original weights. Raise `InputError` for a recipe that no model can be exported
        with. Called before the model is known."""
        return recipe if recipe.quantizes else None

    def check(  # noqa: B027 (a target may hold everything that `source` lets through)
        self, checkpoint: Checkpoint, recipe: Recipe | None, entries: Sequence[Entry]
    ) -> None:
        """Raise `InputError` if the model under `recipe` (None: as it is stored) cannot be exported. Reads
        headers and small files only. `entries` are all parameters with their formats; the format of an entry
        may be a budget, whose candidates must all be possible."""

    @abstractmethod
    def save(
        self,
        parameters: Parameters,
        recipe: Recipe | None,
        folder: Path,
        *,
        overwrite: bool = False,
        progress: Progress,
    ) -> Exported:
        """Write the model into `folder`, which appears complete or not at all."""


def check_name(name: str) -> None:
    """Raise `InputError` with the nearest names if no target is called `name`."""
    if name not in TARGETS:
        raise unknown("export format", name, TARGETS)


def load(name: str) -> Target:
    """Return the target called `name`. Raise `InputError` as `check_name` does."""
    check_name(name)
    return cast(Target, import_module(TARGETS[name].module).TARGET)

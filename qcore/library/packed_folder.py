"""Folders whose weights are packed for another project: what the targets GPTQ, AWQ, compressed-tensors,
bitsandbytes and MLX have in common.

Each is a Hugging Face folder in which the tensor `….weight` of a quantized layer is replaced by a few others,
and config.json says how to read them. A target is a subclass with four methods: `reason_against`, `encode`,
`settings`, and where needed `config`. Weights are written one by one under the names of the original's files:
fused experts are taken apart, tied weights are stored once."""

from __future__ import annotations

import math
import secrets
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

import qcore
from qcore.base.errors import InputError
from qcore.base.files import write_text
from qcore.base.progress import Progress
from qcore.base.tensor_file import Piece
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.inventory import dtype_name
from qcore.library.companions import SHARD_BYTES, Shards, carry, resumed_folder, unclaimed, write_marker
from qcore.library.exports import Exported, Target
from qcore.library.parameters import LoadedParameters, narrowest
from qcore.library.stored_tensors import (
    Stored,
    formats_of,
    kept_layers,
    plain_rows,
    plain_shape,
    plan_of,
    single_quant,
    some_rows,
    undoubled,
)
from qcore.models.assembly import meta_model
from qcore.models.checkpoint import Checkpoint
from qcore.models.config import to_text
from qcore.models.mapping import read_tensor
from qcore.recipes import Engine, Recipe

if TYPE_CHECKING:
    from qcore.library.parameters import Entry, Parameters

_KINDS = {  # of weights: the words for them, and what to do instead
    "conv1d": ("GPT-2's transposed layers", "The targets gguf and gptq hold them."),
    "experts": ("quantized experts", "The targets gguf and mlx hold them."),
    "head": ("a quantized output head", "Leave -head8 out of the recipe."),
    "embedding": ("a quantized embedding", "Leave -head8 out of the recipe."),
}
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class PackedFolder(Target):
    """The base of these targets. `title` and `readers` name the project, and the programs that read its
    files, in messages; `kinds` are the kinds of weights, besides linear layers, that these read in codes;
    `one_format`: all weights have one format."""

    title: ClassVar[str]
    readers: ClassVar[str] = "transformers"
    kinds: ClassVar[frozenset[str]] = frozenset()
    one_format: ClassVar[bool] = False
    carries_unclaimed: ClassVar[bool] = True
    shard_bytes: ClassVar[int] = SHARD_BYTES

    # -- what a target defines

    @abstractmethod
    def reason_against(self, format: Format, shape: tuple[int, int], kind: str) -> str | None:
        """Return why the target cannot hold a weight of `format`, `shape` (N, K) and `kind`, with the nearest
        recipe, or None."""

    @abstractmethod
    def encode(self, weight: QuantizedTensor) -> dict[str, torch.Tensor]:
        """Return the tensors of `weight` by the ends of their names, after that of the layer. Works on the
        meta device."""

    @abstractmethod
    def settings(self, plan: Sequence[Stored], kept: Sequence[str]) -> dict[str, Any]:
        """Return the entries of config.json that describe the quantized layers of `plan`, and those `kept` in
        floating point."""

    def notes(self, formats: Mapping[str, Format]) -> Iterator[str]:
        """Yield sentences on what readers of these files must know."""
        yield from ()

    # -- before any work

    def source(self, recipe: Recipe) -> Recipe | None:
        """See `Target.source`."""
        if isinstance(recipe.weights, Engine):
            raise InputError(
                f"{recipe.name} is quantized by another library, so qcore has no codes to write. Choose one "
                "of qcore's own recipes, such as int4-g64."
            )
        if not recipe.quantizes:
            raise InputError(
                f"{recipe.name} does not quantize, and {self.title} is a format for quantized weights. "
                "Choose a recipe such as int4-g64."
            )
        if recipe.activations == "int8":
            raise InputError(
                f"{recipe.name} quantizes activations while the model runs, but {self.title} is written with "
                f"weights only. The nearest recipe is {recipe.name.replace('-dynamic', '')}."
            )
        return recipe

    def check(self, checkpoint: Checkpoint, recipe: Recipe | None, entries: Sequence[Entry]) -> None:
        """See `Target.check`."""
        seen: dict[Format, str] = {}
        for entry in entries:
            if not entry.formats or entry.shares:
                continue
            kind = entry.kind or "linear"
            if kind != "linear" and kind not in self.kinds:
                what, advice = _KINDS[kind]
                raise InputError(
                    f"{entry.name} cannot be written: {self.readers} cannot load {what} from {self.title} "
                    f"files. {advice}"
                )
            for format in entry.formats:
                if reason := self.reason_against(format, entry.matrix, kind):
                    raise InputError(f"{entry.name} cannot be written. {reason}")
                seen.setdefault(format, entry.name)
        if not seen:
            raise InputError(
                f"{checkpoint.name} is not quantized, and {self.title} is a format for quantized weights. "
                "Give a recipe, such as int4-g64."
            )
        for each in plan_of(meta_model(checkpoint), entries):
            if each.entry.format is not None and each.entry.experts is not None and each.expert is None:
                raise InputError(
                    f"{each.name} cannot be written: the model's files hold all experts in one tensor, and "
                    f"{self.readers} read quantized experts one by one. The targets gguf and mlx hold them."
                )
        if self.one_format and len(seen) > 1:
            (one, first), (other, second) = list(seen.items())[:2]
            raise InputError(
                f"{self.title} has one format for all weights, but {first} may be {one.label} and {second} "
                f"{other.label}. The nearest recipe is {max(seen, key=lambda each: each.bits).label}."
            )

    # -- writing

    def save(
        self,
        parameters: Parameters,
        recipe: Recipe | None,
        folder: Path,
        *,
        overwrite: bool = False,
        progress: Progress,
    ) -> Exported:
        """See `Target.save`."""
        checkpoint, used = parameters.checkpoint, parameters.recipe or recipe
        self.check(checkpoint, used, parameters.entries)
        plan = plan_of(parameters.model, parameters.entries)
        dtypes = {each.name: _dtype(parameters, each) for each in plan if each.entry.format is None}
        extra = unclaimed(checkpoint) if self.carries_unclaimed else ()
        formats = formats_of(plan)
        groups = [(each, self._pieces(each, dtypes)) for each in plan]
        loose = [
            Piece(name, read_tensor(checkpoint, name).dtype, checkpoint.tensors[name].shape) for name in extra
        ]
        pieces = [piece for _, group in groups for piece in group] + loose
        nbytes = sum(piece.nbytes for piece in pieces)
        weights = sum(math.prod(entry.shape) for entry in parameters.entries if not entry.shares)
        weights += sum(math.prod(piece.shape) for piece in loose)
        streams = not isinstance(parameters, LoadedParameters) or checkpoint.is_quantized
        identity = {
            "target": self.name,
            "model": [checkpoint.digest, checkpoint.stamp],
            "recipe": used and used.to_dict(),
            "qcore": qcore.__version__,
            "shards": self.shard_bytes,
            "run": None if streams else secrets.token_hex(8),  # codes that another run may choose differently
        }
        with resumed_folder(folder, overwrite=overwrite, nbytes=nbytes, identity=identity) as journal:
            with Shards(journal.folder, pieces, weights, self.shard_bytes, journal) as shards:
                for number, (each, group) in enumerate(groups):
                    progress(number, len(groups), each.name)
                    if any(shards.awaits(piece.name) for piece in group):
                        for name, tensor in self._tensors(parameters, each, dtypes):
                            shards.write(name, tensor)
                for name in extra:
                    shards.write(name, read_tensor(checkpoint, name))
            kept = kept_layers(parameters, plan)
            config = self.config(parameters, plan, kept, set(dtypes.values()))
            write_text(journal.folder / "config.json", to_text(config))
            notes = (
                *self._general_notes(checkpoint, formats, config, extra),
                *self.notes(formats),
                *carry(checkpoint, parameters.model, journal.folder),
            )
            write_marker(
                journal.folder,
                target=self.name,
                recipe=used,
                checkpoint=checkpoint,
                files=shards.files,
                notes=list(notes),
            )
        return Exported(used.name if used else "", nbytes, 8 * nbytes / weights, tuple(shards.files), notes)

    def config(
        self, parameters: Parameters, plan: Sequence[Stored], kept: Sequence[str], dtypes: set[torch.dtype]
    ) -> dict[str, Any]:
        """Return config.json: the original's, with the settings of the target and the flag of tied weights as
        the model has it."""
        model = parameters.model
        config = {
            key: value
            for key, value in parameters.checkpoint.config.items()
            if key not in ("quantization_config", "quantization")
        }
        config["architectures"] = [type(model).__name__]
        config["tie_word_embeddings"] = bool(model.config.tie_word_embeddings)
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        stated = str(config.get(key, "float32")).removeprefix("torch.")
        if stated not in _DTYPES or (stated == "float32" and torch.float32 not in dtypes):
            widest = max(dtypes, key=lambda dtype: dtype.itemsize, default=torch.float32)
            stated = dtype_name(widest)
        return config | {key: stated} | self.settings(plan, kept)

    def _pieces(self, each: Stored, dtypes: Mapping[str, torch.dtype]) -> list[Piece]:
        """Return the names, types and shapes of the tensors to write for one of the original's."""
        if each.entry.format is None:
            return [Piece(each.name, dtypes[each.name], plain_shape(each))]
        assert isinstance(each.entry.format, Format)
        blank = replace(each.entry, format=single_quant(each.entry.format)).blank()
        return [
            Piece(f"{each.module}.{end}", tensor.dtype, tuple(tensor.shape))
            for end, tensor in self.encode(some_rows(blank, each)).items()
        ]

    def _tensors(
        self, parameters: Parameters, each: Stored, dtypes: Mapping[str, torch.dtype]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors to write for one of the original's."""
        weight = parameters.read(each.entry, each.expert)
        if isinstance(weight, QuantizedTensor):
            for end, tensor in self.encode(some_rows(undoubled(weight), each)).items():
                yield f"{each.module}.{end}", tensor
        else:
            yield each.name, plain_rows(weight, each).to(dtypes[each.name])

    def _general_notes(
        self,
        checkpoint: Checkpoint,
        formats: Mapping[str, Format],
        config: Mapping[str, Any],
        extra: Sequence[str],
    ) -> Iterator[str]:
        if any(format.double_quant for format in formats.values()):
            yield "Scales are stored as the numbers that the recipe's 8-bit codes stand for, in full width."
        dtype = str(config.get("dtype", config.get("torch_dtype", "float32")))
        if dtype == "bfloat16":
            yield (
                "config.json names bfloat16, as the original does: a reader that computes in it rounds "
                "scales to 8 binary digits. dtype=float32 or float16 uses them as they are."
            )
        if extra:
            yield f"Carried unchanged, though the model's class ignores them: {', '.join(extra)}."
        elif dropped := () if self.carries_unclaimed else unclaimed(checkpoint):
            yield f"Not written, because its readers refuse unknown tensors: {', '.join(dropped)}."


def _dtype(parameters: Parameters, each: Stored) -> torch.dtype:
    """Return the narrowest dtype that holds a weight in floating point exactly. Models are loaded in float32,
    also those that were stored in 16 bits."""
    weight = parameters.read(each.entry, each.expert)
    assert isinstance(weight, torch.Tensor)
    return narrowest(weight)

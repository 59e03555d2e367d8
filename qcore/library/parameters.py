"""The parameters of a model under a recipe, one at a time: what an export writes.

    outline(checkpoint, recipe)    every parameter with its shape and format, from headers alone
    Parameters                     the same with the weights: `LoadedParameters` of a model in memory,
                                   `qcore.streaming.parameters` straight from the checkpoint's files

Matrices are (N outputs, K inputs) here, also where the model keeps them transposed, and experts are matrices
of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from transformers.pytorch_utils import Conv1D

from qcore.formats.budget import Budget
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.experts import expert_layouts
from qcore.layers.inventory import inventory, plain_name
from qcore.layers.modules import QuantExperts, QuantizedModule, StoredExperts
from qcore.layers.select import Target, select
from qcore.layers.text_part import output_head
from qcore.library import manifest
from qcore.library.loading import Loaded
from qcore.models.assembly import meta_model
from qcore.models.checkpoint import Checkpoint
from qcore.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK = 1 << 22  # weights of a floating-point tensor per conversion
_EXPERT = re.compile(r"(.+)\.experts\.(\d+)")


@dataclass(frozen=True)
class Entry:
    """A parameter or saved buffer of the model.

    `shape`: (N, K) of a matrix, (E, N, K) of fused experts, otherwise the parameter's. `format`: of its
    codes; a `Budget` where it is not chosen yet; None if the parameter is kept in floating point. `kind`: as
    in `select.Target`, None if no recipe quantizes the parameter. `shares`: the entry that holds the same
    weights. `reason`: why it is kept. `transposed`: the model's own files hold (K, N).
    """

    name: str
    shape: tuple[int, ...]
    format: Format | Budget | None = None
    kind: str | None = None
    shares: str | None = None
    reason: str | None = None
    transposed: bool = False

    @property
    def module(self) -> str:
        """The name of the module that holds the parameter."""
        return self.name.rpartition(".")[0]

    @property
    def experts(self) -> int | None:
        """The number of fused experts; None for an ordinary parameter."""
        return self.shape[0] if self.kind == "experts" else None

    @property
    def matrix(self) -> tuple[int, int]:
        """(N, K) of the matrix, or of each expert's."""
        return self.shape[-2], self.shape[-1]

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats that the entry may get: none, one, or the candidates of a budget."""
        if self.format is None:
            return ()
        candidates = self.format.candidates if isinstance(self.format, Budget) else (self.format,)
        return tuple(dict.fromkeys(format.for_columns(self.shape[-1]) for format in candidates))

    def blank(self) -> QuantizedTensor:
        """Return a weight of this entry's format and shape on the meta device: an encoder applied to it
        yields the names, dtypes and shapes of what it will write."""
        if not isinstance(self.format, Format):
            raise ValueError(f"{self.name} has no format")
        parts = {
            part: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for part, (dtype, shape) in self.format.layout(*self.matrix).items()
        }
        if (table := self.format.fixed) is not None:
            parts["codebook"] = table
        return QuantizedTensor(self.format, self.matrix, **parts)


class Parameters(Protocol):
    """The parameters of one model. `model` has its config, its classes and its names, possibly without
    weights; `recipe` and `calibration` say how its codes were chosen (None: not quantized, no text)."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def recipe(self) -> Recipe | None: ...
    @property
    def calibration(self) -> dict | None: ...
    @property
    def entries(self) -> tuple[Entry, ...]: ...

    def read(self, entry: Entry, expert: int | None = None) -> torch.Tensor | QuantizedTensor:
        """Return the weight of `entry`: codes if it has a format, otherwise floating point as it is stored.
        `expert` selects one matrix of fused experts, whose codes can be read in no other way."""
        ...


def outline(checkpoint: Checkpoint, recipe: Recipe | None) -> tuple[Entry, ...]:
    """Return all parameters of `checkpoint` as `recipe` will leave them; with None as they are, with the
    formats of a model that qcore quantized. Reads headers only. Raise `InputError` for a skip pattern without
    a match."""
    model = meta_model(checkpoint)
    if recipe is None and checkpoint.is_quantized:
        return _saved(model, checkpoint)
    choices: dict[str, Target] = {}
    kept: dict[str, str] = {}
    if recipe is not None and recipe.quantizes:
        selection = select(model, recipe)
        choices, kept = {target.name: target for target in selection.targets}, selection.kept
    untied = recipe is not None and recipe.prepare == "rotation"
    found = []
    for entry in _plain(model):
        target = choices.get(entry.name)
        shares = None if untied else entry.shares
        if target is None:
            found.append(replace(entry, shares=shares, reason=kept.get(entry.name)))
        else:
            found.append(replace(entry, shares=shares, format=target.format, kind=target.kind))
    return tuple(found)


class LoadedParameters:
    """The parameters of a model in memory, quantized by qcore or not. Codes are those of its layers."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded
        self.checkpoint, self.model, self.recipe = loaded.checkpoint, loaded.model, loaded.recipe
        self.calibration = loaded.ledger.calibration if loaded.ledger is not None else None
        self._kept: dict[str, torch.Tensor] = {}
        self._coded: dict[str, QuantizedModule | QuantExperts] = {}
        self.entries = self._entries()

    def read(self, entry: Entry, expert: int | None = None) -> torch.Tensor | QuantizedTensor:
        """See `Parameters.read`."""
        if entry.format is None:
            tensor = self._kept[entry.name]
            tensor = tensor.transpose(-1, -2) if entry.transposed else tensor
            return tensor if expert is None else tensor[expert]
        module = self._coded[entry.name]
        if isinstance(module, QuantizedModule):
            return module.quantized
        if expert is None:
            raise ValueError(f"{entry.name} holds the codes of several experts")
        chosen = module.experts[expert]
        assert isinstance(chosen, QuantizedModule)
        return chosen.quantized

    def _entries(self) -> tuple[Entry, ...]:
        modules = dict(self.model.named_modules())
        kinds = {entry.name: entry for entry in _plain(meta_model(self.checkpoint))}
        found: dict[str, Entry] = {}
        reasons = {row.name: row.reason for row in self.loaded.ledger.rows} if self.loaded.ledger else {}
        for full, tensor, shared in inventory(self.model):
            owner, _, part = full.rpartition(".")
            module = modules[owner]
            if isinstance(module, QuantizedModule) and part in QuantizedTensor.PARTS:
                name = _coded_name(owner, modules)
                if name in found:
                    continue
                fused = modules.get(name)
                self._coded[name] = fused if isinstance(fused, QuantExperts) else module
                twin = None if shared is None else _coded_name(shared.rpartition(".")[0], modules)
                count = (len(fused.experts),) if isinstance(fused, QuantExperts) else ()
                before = kinds.get(name)
                found[name] = Entry(
                    name,
                    (*count, *module.shape),
                    module.format,
                    before.kind if before else "head",  # a rotated model's head is a parameter of its own
                    twin,
                    transposed=bool(before and before.transposed),
                )
                continue
            name = plain_name(full)
            before = kinds.get(name, Entry(name, tuple(tensor.shape)))
            twin = None if shared is None else plain_name(shared)
            self._kept[name] = tensor.detach()
            found[name] = replace(before, shares=twin, reason=reasons.get(name))
        order = {name: i for i, name in enumerate(kinds)}
        return tuple(sorted(found.values(), key=lambda entry: order.get(entry.name, len(order))))


def _coded_name(owner: str, modules: dict[str, torch.nn.Module]) -> str:
    """Return the name of the parameter whose codes the module `owner` holds."""
    match = _EXPERT.fullmatch(owner)
    if match and isinstance(modules.get(match[1]), QuantExperts):
        return match[1]
    return f"{owner}.weight"


def _plain(model: PreTrainedModel) -> list[Entry]:
    """Return the entries of a model whose layers are not quantized, without formats."""
    head, modules, found = output_head(model), dict(model.named_modules()), []
    layouts = expert_layouts(model)
    for full, tensor, shared in inventory(model):
        module = modules[full.rpartition(".")[0]]
        name, shape, kind, transposed = plain_name(full), tuple(tensor.shape), None, False
        if name.endswith(".weight") and tensor.ndim == 2:
            if module is head:
                kind = "head"
            elif isinstance(module, torch.nn.Embedding):
                kind = "embedding"
            elif isinstance(module, Conv1D):
                kind, transposed = "conv1d", True
            elif isinstance(module, torch.nn.Linear):
                kind = "linear"
        elif name in layouts or (tensor.ndim == 3 and isinstance(module, StoredExperts)):
            kind, transposed = "experts", layouts.get(name, False)
        if transposed:
            shape = (*shape[:-2], shape[-1], shape[-2])
        found.append(Entry(name, shape, None, kind, shared and plain_name(shared), None, transposed))
    return found


def _saved(model: PreTrainedModel, checkpoint: Checkpoint) -> tuple[Entry, ...]:
    """Return the entries of a model that qcore saved quantized, from its manifest."""
    about = manifest.read(checkpoint.folder)
    rows = {row.name: row for row in about.ledger.rows}
    found = []
    for entry in _plain(model):
        stem = f"{entry.name}.experts.0" if entry.experts else entry.module
        matrix = about.matrices.get(stem)
        row = rows.get(entry.name)
        shares = entry.shares if row is None else row.shares
        if matrix is None or (not entry.experts and not entry.name.endswith(".weight")):
            found.append(replace(entry, shares=shares, reason=None if row is None else row.reason))
        else:
            found.append(replace(entry, shares=shares, format=matrix.format))
    return tuple(found)


def narrowest(tensor: torch.Tensor) -> torch.dtype:
    """Return the narrowest floating-point dtype that holds all values of `tensor` exactly, bfloat16 before
    float16. Rows are compared in chunks, so no copy of the tensor is made."""
    if tensor.dtype != torch.float32:
        return tensor.dtype
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(rows.to(dtype).float(), rows) for rows in row_chunks(tensor)):
            return dtype
    return torch.float32


def row_chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield whole rows of `tensor`, about `_CHUNK` weights at a time."""
    if tensor.ndim == 0:  # such as a learned parameter of Apertus' activation
        yield tensor
        return
    rows = max(1, _CHUNK // max(1, tensor[0].numel())) if tensor.ndim > 1 else _CHUNK
    yield from tensor.split(rows)

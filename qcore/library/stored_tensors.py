"""The tensors of an original's files, as an export writes them: which rows of which parameter each holds, and
their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from qcore.base.errors import InputError
from qcore.base.transformers_internals import StoredRows, stored_rows
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qcore.library.parameters import Entry, Parameters


@dataclass(frozen=True)
class Stored:
    """One tensor of the original's files: its `name`, the `entry` whose weights it holds, and which: the
    matrix of one `expert` or all, and its `rows`."""

    name: str
    entry: Entry
    expert: int | None
    rows: slice

    @property
    def module(self) -> str:
        """The name of the layer in the files."""
        return self.name.rpartition(".")[0]

    @property
    def format(self) -> Format | None:
        """The format of its codes."""
        format = self.entry.format
        return format if isinstance(format, Format) else None

    @property
    def whole(self) -> bool:
        """Whether `rows` are all rows of the matrix."""
        return self.rows == slice(0, self.entry.matrix[0])


def formats_of(plan: Sequence[Stored]) -> dict[str, Format]:
    """Return the formats of the quantized layers of `plan` by their names in the files."""
    return {each.module: format for each in plan if (format := each.format)}


# -- which tensors


def plan_of(model: PreTrainedModel, listed: Sequence[Entry]) -> list[Stored]:
    """Return the tensors of the original's files that are to be written, in an order in which each weight is
    read once. `model` may be on the meta device. Raise `InputError` if a stored tensor is not a run of rows
    of the `listed` parameters."""
    entries = {entry.name: entry for entry in listed}
    shapes = {entry.name: entry.shape for entry in listed if not entry.shares}
    transposed = {entry.name for entry in listed if entry.transposed}
    try:
        layout = stored_rows(model, shapes, transposed)
    except ValueError as error:
        raise InputError(f"The model stores its weights in a way that cannot be packed: {error}.") from error
    order = {name: place for place, name in enumerate(entries)}
    found = [_stored(name, entries[rows.parameter], rows) for name, rows in layout.items()]
    return sorted(found, key=lambda each: (order[each.entry.name], each.expert or 0, each.rows.start))


def _stored(name: str, entry: Entry, rows: StoredRows) -> Stored:
    height = entry.matrix[0] if len(entry.shape) > 1 else 1
    if entry.experts is None or entry.format is None or rows.count > height:
        return Stored(name, entry, None, slice(rows.first, rows.first + rows.count))
    expert, first = divmod(rows.first, height)
    return Stored(name, entry, expert, slice(first, first + rows.count))


def kept_layers(parameters: Parameters, plan: Sequence[Stored]) -> list[str]:
    """Return the names of the layers with a matrix in floating point: they must be listed, or a reader would
    expect codes for them. Some readers look for the name in the files, transformers for that in the model.
    Embeddings are no layers to readers."""
    kept = {
        name: None
        for each in plan
        for name in (each.module, *([each.entry.module] if each.entry.name.endswith(".weight") else []))
        if each.entry.format is None
        and len(each.entry.shape) > 1
        and each.entry.kind != "embedding"
        and each.name.endswith(".weight")
    }
    tied = [entry.module for entry in parameters.entries if entry.shares and entry.kind == "head"]
    return [*kept, *(name for name in tied if name not in kept)]


# -- values


def single_quant(format: Format) -> Format:
    """Return `format` with scales that are not quantized again."""
    return replace(format, double_quant=False) if format.double_quant else format  # type: ignore[call-arg]


def undoubled(weight: QuantizedTensor) -> QuantizedTensor:
    """Return `weight` with the same scales, stored as float16."""
    if not weight.format.double_quant:
        return weight
    scale = weight.scales()
    assert scale is not None
    return replace(
        weight, format=single_quant(weight.format), scale=scale.half(), scale_codes=None, scale_range=None
    )


def some_rows(weight: QuantizedTensor, each: Stored) -> QuantizedTensor:
    """Return the rows of `weight`, whose scales are not quantized again, that `each` holds."""
    if each.whole:
        return weight
    rows = each.rows
    zero = weight.zero_points()
    parts: dict[str, Any] = {}
    for name in ("scale", "minimum", "scale_codes", "min_codes"):
        if (part := weight.parts().get(name)) is not None:
            parts[name] = part[rows]
    table = weight.codebook
    made = QuantizedTensor.from_packed(
        weight.format,
        (rows.stop - rows.start, weight.shape[1]),
        weight.codes[rows],
        zero_point=zero[rows].to(torch.uint8) if isinstance(zero, torch.Tensor) else None,
        codebook=table[rows] if table is not None and table.ndim == 2 else table,
    )
    return replace(made, **parts)


def plain_rows(weight: torch.Tensor, each: Stored) -> torch.Tensor:
    """Return the rows of a weight in floating point, in the layout of the original's files."""
    if weight.ndim < 2:
        return weight.flatten()[each.rows].view(plain_shape(each))
    chosen = weight.reshape(-1, weight.shape[-1])[each.rows].view(_shape(each))
    return (chosen.transpose(-1, -2) if each.entry.transposed else chosen).contiguous()


def _shape(each: Stored) -> tuple[int, ...]:
    """Return the shape of the rows: that of the entry, or a matrix of some of its rows."""
    count, entry = each.rows.stop - each.rows.start, each.entry
    if len(entry.shape) < 2:
        return (count,) if entry.shape else ()
    if count == math.prod(entry.shape[:-1]):
        return entry.shape
    return count, entry.shape[-1]


def plain_shape(each: Stored) -> tuple[int, ...]:
    """Return the shape in the original's files."""
    shape = _shape(each)
    return (*shape[:-2], shape[-1], shape[-2]) if each.entry.transposed else shape

"""One weight of a model and its dequantized codes."""

import math
from dataclasses import dataclass

import torch

from qcore import recipes
from qcore.formats.kinds import Format, group_count
from qcore.formats.tensor import QuantizedTensor
from qcore.models import Checkpoint
from qcore.quantization import methods
from qcore.verbs import layer_errors
from qcore.verbs.lesson_types import Group, Rounded

LARGEST = 1 << 21  # weights at most; a larger matrix is cut to its first rows


@dataclass(frozen=True)
class Sample:
    """`weight` (N, K), float32: the tensor `name`, or the first of its `rows` rows where it is large."""

    name: str
    weight: torch.Tensor
    rows: int

    @property
    def is_whole(self) -> bool:
        """Whether all rows are included."""
        return len(self.weight) == self.rows


def names(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the weights that can be shown. Raise `InputError` for a quantized model."""
    return layer_errors.names(checkpoint, recipes.parse("int8"))


def read(checkpoint: Checkpoint, name: str) -> Sample:
    """Return the weight `name` (rows are outputs); for a mixture of experts the first expert's. Raise
    `InputError` as `names` does."""
    weight = layer_errors.weight(checkpoint, name)
    rows = max(1, min(len(weight), LARGEST // weight.shape[1]))
    return Sample(name, weight[:rows].clone(), len(weight))


def rounded(weight: torch.Tensor, format: Format, place: int | None = None) -> Rounded:
    """Round `weight` (N, K) to `format` (learned tables: by k-means), and show group number `place`, counted
    row by row (None: the group with the median range)."""
    return describe(weight, methods.quantize(weight, format, format.method), place)


def describe(weight: torch.Tensor, stored: QuantizedTensor, place: int | None = None) -> Rounded:
    """Return the same for existing codes."""
    values, count = stored.dequantize(), weight.numel()
    error = relative_error(weight, values)
    parts = {name: 8 * part.nbytes / count for name, part in stored.parts().items() if stored.is_stored(name)}
    return Rounded(
        stored.format.label,
        error,
        decibels(error),
        stored.bits_per_weight,
        parts,
        _group(weight, values, stored, place),
    )


def relative_error(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return ‖after − before‖ / ‖before‖."""
    return float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before))


def decibels(error: float) -> float:
    """Return −20 · log10 of a relative error; infinite for 0."""
    return -20 * math.log10(error) if error else math.inf


def places(weight: torch.Tensor, group_size: int) -> dict[str, int]:
    """Return group numbers worth showing: median range, largest outlier (largest magnitude over the mean),
    and greatest asymmetry."""
    whole = weight[:, : weight.shape[1] // group_size * group_size]
    if not whole.numel():  # a row shorter than a group
        return {"typical": 0, "outlier": 0, "lopsided": 0}
    groups, each = whole.reshape(-1, group_size), group_count(weight.shape[1], group_size)
    low, high = groups.aminmax(dim=1)
    reach = groups.abs().amax(1)
    found = {
        "typical": reach.argsort()[len(reach) // 2],
        "outlier": (reach / groups.abs().mean(1)).argmax(),
        "lopsided": ((high + low).abs() / reach).argmax(),
    }
    full = whole.shape[1] // group_size
    return {name: int(index) // full * each + int(index) % full for name, index in found.items()}


def _group(weight: torch.Tensor, values: torch.Tensor, stored: QuantizedTensor, place: int | None) -> Group:
    size = weight.shape[1] if stored.format.group_size is None else stored.format.group_size
    each = stored.format.groups(weight.shape[1])
    if place is None:
        place = places(weight, min(size, weight.shape[1]))["typical"]
    row, start = place // each, place % each * size
    part = slice(start, min(start + size, weight.shape[1]))
    values_of_group = tuple(sorted(set(stored.group_values(row, place % each).tolist())))
    return Group(tuple(weight[row, part].tolist()), tuple(values[row, part].tolist()), values_of_group)

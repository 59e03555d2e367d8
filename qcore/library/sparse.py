"""Pruned models in files: tensors with enough zeros are stored sparse (see `qcore.formats.sparse`) and
restored bit for bit.

The manifest lists them: {"name", "columns", "bits"} for a float matrix, {"name": "….codes", "module",
"columns", "bits"} for codes, where the omitted codes are those of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from qcore.base.errors import InputError
from qcore.formats.packing import pack
from qcore.formats.sparse import compress, expand, zero_codes
from qcore.formats.tensor import QuantizedTensor

MASK, VALUES = "sparse_mask", "sparse_values"


@dataclass(frozen=True)
class SparseMatrix:
    """A matrix that is stored without its zeros: a float one called `name`, or the codes of `module`, of
    `columns` columns and `bits` bits per weight."""

    name: str
    columns: int
    bits: int
    module: str | None = None

    def to_dict(self) -> dict:
        """Return the JSON-ready form."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def shrink(
    tensors: dict[str, torch.Tensor], quantized: dict[str, QuantizedTensor], names: set[str]
) -> tuple[dict[str, torch.Tensor], list[SparseMatrix]]:
    """Return the `tensors` to write, with the matrices of `names` in sparse form where that is smaller, and
    the manifest's entries.

    `quantized` holds the tensors of quantized modules by module name; their codes are called `MODULE.codes`.
    """
    made, entries = dict(tensors), []
    for name in sorted(names & set(tensors)):
        owner, _, part = name.rpartition(".")
        tensor = tensors[name]
        if owner in quantized and part == "codes":
            weight = quantized[owner]
            codes, empty, bits = weight.unpacked_codes(), zero_codes(weight), weight.format.bits
            if empty is None:
                continue
            entry = SparseMatrix(name, weight.shape[1], bits, owner)
            mask, values = compress(codes, codes != empty, bits)
        elif tensor.ndim == 2 and tensor.is_floating_point():
            bits = 8 * tensor.element_size()
            entry = SparseMatrix(name, tensor.shape[1], bits)
            mask, values = compress(tensor, tensor != 0, bits)
        else:
            continue
        if mask.nbytes + values.nbytes < tensor.nbytes:
            del made[name]
            made |= {f"{name}.{MASK}": mask, f"{name}.{VALUES}": values}
            entries.append(entry)
    return made, entries


def grow(
    tensors: dict[str, torch.Tensor], entries: Sequence[SparseMatrix], quantized: dict[str, QuantizedTensor]
) -> dict[str, torch.Tensor]:
    """Invert `shrink`: return the dense `tensors`. `quantized` holds the modules' tensors, whose codes are
    ignored. Raise `InputError` if a mask and its values do not fit."""
    made = dict(tensors)
    for entry in entries:
        name, columns, bits = entry.name, entry.columns, entry.bits
        mask, values = made.pop(f"{name}.{MASK}"), made.pop(f"{name}.{VALUES}")
        if entry.module is None:
            made[name] = expand(mask, values, columns, bits, torch.zeros(1, 1))
        else:
            zero = zero_codes(quantized[entry.module])
            if zero is None:
                raise InputError(f"{entry.module} is stored without zeros, but its format has no exact 0.")
            made[name] = pack(expand(mask, values, columns, bits, zero), bits)
    return made

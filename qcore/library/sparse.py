"""Pruned models in files: tensors with enough zeros are stored sparse (see `qcore.formats.sparse`), and read
back bit for bit.

The manifest lists them: {"name", "columns", "bits"} for a float matrix, {"name": "….codes", "columns",
"bits", "format", "like"} for codes, whose zeros are the codes that stand for 0.
"""

from __future__ import annotations

import torch

from qcore.formats.packing import pack
from qcore.formats.sparse import compress, expand, zero_codes
from qcore.formats.tensor import QuantizedTensor

MASK, VALUES = "sparse_mask", "sparse_values"


def shrink(
    tensors: dict[str, torch.Tensor], quantized: dict[str, QuantizedTensor], names: set[str]
) -> tuple[dict, list[dict]]:
    """`tensors` to write, those matrices of `names` replaced by their sparse form that are smaller in it, and
    the manifest's entries.

    `quantized` has the tensors of quantized modules by the module's name; their codes are called
    `MODULE.codes`.
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
            entry = {"name": name, "module": owner, "columns": weight.shape[1], "bits": bits}
            mask, values = compress(codes, codes != empty, bits)
        elif tensor.ndim == 2 and tensor.is_floating_point():
            bits = 8 * tensor.element_size()
            entry = {"name": name, "columns": tensor.shape[1], "bits": bits}
            mask, values = compress(tensor, tensor != 0, bits)
        else:
            continue
        if mask.nbytes + values.nbytes < tensor.nbytes:
            del made[name]
            made |= {f"{name}.{MASK}": mask, f"{name}.{VALUES}": values}
            entries.append(entry)
    return made, entries


def grow(
    tensors: dict[str, torch.Tensor], entries: list[dict], quantized: dict[str, QuantizedTensor]
) -> dict[str, torch.Tensor]:
    """`tensors` as they were before `shrink`; `quantized`: the modules' tensors, whose codes are not looked
    at."""
    made = dict(tensors)
    for entry in entries:
        name, columns, bits = entry["name"], entry["columns"], entry["bits"]
        mask, values = made.pop(f"{name}.{MASK}"), made.pop(f"{name}.{VALUES}")
        if "module" not in entry:
            made[name] = expand(mask, values, columns, bits, torch.zeros(1, 1))
        else:
            made[name] = pack(
                expand(mask, values, columns, bits, zero_codes(quantized[entry["module"]])), bits
            )
    return made

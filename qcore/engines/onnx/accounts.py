"""The ledger's rows of a model's ONNX file: format and bytes per tensor, counted from the file itself."""

import math
from collections.abc import Callable
from pathlib import Path

from torch import nn

from qcore.layers.inventory import inventory, kept_row
from qcore.recipes.ledger import LedgerRow

Label = Callable[[str, list[str]], tuple[str | None, str | None]]
GRAPH = "constants of the graph"
CONSTANTS = "Tables of positions, shapes and other constants."


def before(model: nn.Module) -> list[tuple[LedgerRow, str | None]]:
    """Return (row, shared) per tensor of the unquantized `model`; `shared` is the name of the tensor with the
    same storage, or None. Call before the export, which changes the model."""
    return [(kept_row(name, tensor, shared, None), shared) for name, tensor, shared in inventory(model)]


def rows(
    path: Path,
    tensors: list[tuple[LedgerRow, str | None]],
    label: Label,
    wanted: frozenset[str] = frozenset(),
) -> list[LedgerRow]:
    """Return the rows after the export to the file `path`. `label(name, initializers)` returns the format of
    a tensor and the reason if it was kept. A tensor in `wanted` that has no format gets `intended=False`: the
    recipe should have quantized it."""
    owners = {row.name: shared or row.name for row, shared in tensors}
    sizes: dict[str, int] = dict.fromkeys(owners, 0)
    parts: dict[str, list[str]] = {name: [] for name in owners}
    rest = 0
    for name, nbytes in initializers(path):
        owner = _owner(name, owners)
        if owner is None:
            rest += nbytes
        else:
            sizes[owners[owner]] += nbytes
            parts[owners[owner]].append(name)
    found = []
    for row, shared in tensors:
        format, reason = (None, row.reason) if shared else label(row.name, parts[row.name])
        intended = format is not None or row.name not in wanted
        found.append(
            LedgerRow(
                row.name,
                row.shape,
                row.dtype,
                format,
                row.bytes_before,
                sizes[row.name],
                row.weights,
                reason,
                intended,
                shares=shared,
            )
        )
    if rest:
        found.append(LedgerRow(GRAPH, (), "float32", None, 0, rest, 0, CONSTANTS))
    return found


def initializers(path: Path) -> list[tuple[str, int]]:
    """Return (name, bytes) of every initializer of the ONNX graph in `path`, without reading the weights."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return [
        (each.name, math.ceil(math.prod(each.dims) * _bits(each.data_type) / 8)) for each in graph.initializer
    ]


def _bits(data_type: int) -> int:
    import onnx

    if data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return 4
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _owner(name: str, owners) -> str | None:
    """Return the tensor to which the initializer `name` belongs: its name, or its prefix before a suffix that
    an operator adds ("….scale", "…_quantized")."""
    found = [tensor for tensor in owners if name == tensor or name.startswith((f"{tensor}.", f"{tensor}_"))]
    return max(found, key=len, default=None)

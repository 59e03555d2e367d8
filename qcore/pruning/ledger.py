"""The ledger of a pruned model: sparsity and sparse size of each tensor (see `qcore.formats.sparse`)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from qcore.formats.sparse import sparse_bytes, zero_codes
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.inventory import inventory, kept_row
from qcore.layers.modules import QuantExperts, QuantizedModule
from qcore.pruning.masks import Kept, sparsity
from qcore.recipes.ledger import Ledger, LedgerRow


def sparse_names(model: nn.Module, kept: Kept) -> set[str]:
    """Return the tensors of `model`, by their names in a file, whose zeros need not be stored."""
    names = set()
    for name in kept:
        owner, _, parameter = name.rpartition(".")
        module = model.get_submodule(owner)
        inside = getattr(module, parameter, None)
        if isinstance(inside, QuantExperts):
            names |= {f"{name}.experts.{i}.codes" for i in range(len(inside.experts))}
        else:
            names.add(f"{owner}.codes" if isinstance(module, QuantizedModule) else name)
    return names


def of_floats(model: nn.Module, kept: Kept, name: str) -> Ledger:
    """Return the ledger of an unquantized model that was pruned by the method `name`, stored sparse."""
    shares, rows = sparsity(kept), []
    for full, tensor, shared in inventory(model):
        row = kept_row(full, tensor, shared, None if full in shares else "Not pruned.")
        if full in shares and not shared and tensor.ndim == 2:
            rows_, columns = tensor.shape
            size = min(
                tensor.nbytes,
                sparse_bytes(rows_, columns, int((tensor != 0).sum()), 8 * tensor.element_size()),
            )
            row = replace(row, format=name, bytes_after=size, sparsity=shares[full])
        elif full in shares:
            row = replace(
                row, format=name, sparsity=shares[full], reason="Its three-dimensional form is stored whole."
            )
        rows.append(row)
    return Ledger("fp32", tuple(rows))


def of_codes(model: nn.Module, ledger: Ledger, kept: Kept) -> Ledger:
    """Return the `ledger` of a quantized `model` with pruned codes, with the bytes of sparse codes where
    these are fewer."""
    shares = sparsity(kept)
    return replace(ledger, rows=tuple(_sparse_row(model, row, shares.get(row.name)) for row in ledger.rows))


def _sparse_row(model: nn.Module, row: LedgerRow, share: float | None) -> LedgerRow:
    if share is None or not row.bytes_after:
        return row
    owner, _, parameter = row.name.rpartition(".")
    module = model.get_submodule(owner)
    inside = getattr(module, parameter, None)
    layers = list(inside.experts) if isinstance(inside, QuantExperts) else [module]
    tensors = [layer.quantized for layer in layers if isinstance(layer, QuantizedModule)]
    saved = sum(max(0, each.codes.nbytes - _codes_bytes(each)) for each in tensors)
    return replace(row, bytes_after=row.bytes_after - saved, sparsity=share)


def _codes_bytes(tensor: QuantizedTensor) -> int:
    empty = zero_codes(tensor)
    if empty is None:
        raise ValueError(f"{tensor.format.label} has no code for 0")
    return sparse_bytes(*tensor.shape, int(tensor.unpacked_codes().ne(empty).sum()), tensor.format.bits)

"""Every tensor of a model, once: the basis of ledgers, sizes and saved files."""

from collections.abc import Iterator

import torch
from torch import nn

from qcore.base.torch_internals import is_saved
from qcore.layers.modules import QuantizedModule
from qcore.recipes.ledger import Ledger, LedgerRow


def inventory(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, str | None]]:
    """Return every parameter and saved buffer as (name, tensor, name of the earlier tensor whose storage it
    shares, or None)."""
    seen: dict[tuple, str] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, QuantizedModule):
            module.restore()
        tensors = [*module.named_parameters(recurse=False)]
        tensors += [
            (name, buffer) for name, buffer in module.named_buffers(recurse=False) if is_saved(module, name)
        ]
        for name, tensor in tensors:
            full = f"{module_name}.{name}" if module_name else name
            # on the meta device the address is the offset in the storage, which other tensors' parts have too
            is_real = tensor.data_ptr() and not tensor.is_meta
            place = (tensor.data_ptr(), tensor.nbytes) if is_real else (id(tensor), 0)
            yield full, tensor, seen.get(place)
            seen.setdefault(place, full)


def kept_row(
    name: str, tensor: torch.Tensor, shared_with: str | None, reason: str | None, intended: bool = True
) -> LedgerRow:
    """Return the ledger row of a tensor that is not quantized."""
    size = 0 if shared_with else tensor.nbytes
    reason = f"Shares the storage of {shared_with}." if shared_with else reason
    return LedgerRow(
        name=name,
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor.dtype),
        format=None,
        bytes_before=size,
        bytes_after=size,
        weights=tensor.numel(),
        reason=reason,
        intended=intended,
        shares=shared_with,
    )


def as_it_is(model: nn.Module, name: str) -> Ledger:
    """Return the ledger, called `name`, of a model without a recipe."""
    return Ledger(name, tuple(kept_row(*each, None) for each in inventory(model)))


def plain_name(name: str) -> str:
    """Return the original name of a tensor that `narrow.py` moved into a wrapper."""
    return name.replace("parametrizations.", "").removesuffix(".original").removesuffix(".stored")


def dtype_name(dtype: torch.dtype) -> str:
    """Return "float32" for `torch.float32`."""
    return str(dtype).removeprefix("torch.")

"""Which modules look up rows of an embedding: `nn.Embedding` itself, and subclasses that multiply the rows by
a number (Gemma's by the square root of the hidden size)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import functional_call

if TYPE_CHECKING:
    from typing import TypeGuard

_COLUMNS = 3  # of the small table with which a forward is tried


def is_embedding(module: nn.Module | None) -> TypeGuard[nn.Embedding]:
    """Return whether `module` gives the rows of its weight, times at most one number for all rows. Buffers
    may be on the meta device."""
    return isinstance(module, nn.Embedding) and _scale(module) is not None


def scale_of(module: nn.Embedding) -> float:
    """Return the number by which an embedding multiplies its rows; 1.0 for `nn.Embedding`."""
    found = _scale(module)
    assert found is not None and not any(buffer.is_meta for buffer in module.buffers())
    return found


@torch.no_grad()
def _scale(module: nn.Embedding) -> float | None:
    """Return the number, None if the module computes something else. A subclass with a forward of its own is
    run on a small table; a buffer on the meta device counts as 1."""
    if type(module).forward is nn.Embedding.forward:
        return 1.0 if module.max_norm is None else None
    if {name for name, _ in module.named_parameters()} != {"weight"} or module.max_norm is not None:
        return None
    with torch.device("cpu"):  # the caller may be building a model on the meta device
        rows = max(4, (module.padding_idx or 0) + 1)
        table = torch.randn(rows, _COLUMNS, generator=torch.Generator().manual_seed(0))
        table[:, 0] = 1.0  # so that the number can be read without rounding
        buffers = {
            name: torch.ones_like(buffer, device="cpu") if buffer.is_meta else buffer.cpu()
            for name, buffer in module.named_buffers()
        }
        ids = torch.tensor([[0, 1], [3, 2]])
        try:
            made = functional_call(module, {"weight": table, **buffers}, (ids,))
        except Exception:  # code of others, with a table that is not its own
            return None
        if not isinstance(made, torch.Tensor) or made.shape != (*ids.shape, _COLUMNS):
            return None
        scale = float(made[0, 0, 0])
        return scale if torch.allclose(made, table[ids] * scale, rtol=1e-5, atol=0) else None

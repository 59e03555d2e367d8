"""Which modules compute a linear layer: `nn.Linear` itself, and subclasses whose forward gives the same
product in other words (Falcon's adds the bias in a step of its own)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from typing import TypeGuard

_OUTPUTS, _INPUTS = 3, 5  # of the small weight with which a forward is tried


def is_linear(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    """Return whether `module` computes x · Wᵀ + bias and nothing else. A subclass of `nn.Linear` with a
    forward of its own is run on a small weight; the module's own weight is not read and may be on the meta
    device."""
    if type(module) is nn.Linear:
        return True
    if not isinstance(module, nn.Linear) or parametrize.is_parametrized(module):
        return False
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return False  # nn.MultiheadAttention reads its weight and does not call it
    return type(module).forward is nn.Linear.forward or _gives_the_product(module)


@torch.no_grad()
def _gives_the_product(module: nn.Linear) -> bool:
    own = dict(module.named_parameters())
    if set(own) - {"weight", "bias"} or next(module.buffers(), None) is not None:
        return False
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 4, _INPUTS, generator=generator)
    tensors = {"weight": torch.randn(_OUTPUTS, _INPUTS, generator=generator)}
    if module.bias is not None:
        tensors["bias"] = torch.randn(_OUTPUTS, generator=generator)
    expected = nn.functional.linear(given, tensors["weight"], tensors.get("bias"))
    try:
        made = functional_call(module, tensors, (given,))
    except Exception:  # code of others, with a weight that is not its own
        return False
    return (
        isinstance(made, torch.Tensor)
        and made.shape == expected.shape
        and torch.allclose(made, expected, 1e-4)
    )

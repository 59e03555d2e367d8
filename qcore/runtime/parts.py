"""Parts of the native description that every reader of a model uses: norms, projections, values of the
config."""

from dataclasses import replace
from typing import Any

from torch import nn

from qcore.layers.modules import QuantLinear
from qcore.runtime.description import Norm, Rows, Unsupported
from qcore.runtime.families import Family


def norm_of(family: Family, module: Any) -> Norm | None:
    """Read a norm; None stays None."""
    if module is None:
        return None
    is_torch = isinstance(module, nn.LayerNorm)
    norms = getattr(module, "norms", None)
    if isinstance(norms, nn.ModuleList):  # one per head
        each: list[Any] = list(norms)
        first = norm_of(family, each[0])
        assert first is not None
        if any(norm.bias is not None or norm.eps != first.epsilon for norm in each):
            raise Unsupported("The decoder does not know norms of heads that have biases or differ.")
        return replace(first, weight=None, each=tuple(norm.weight for norm in each))
    epsilon = module.eps if hasattr(module, "eps") else module.variance_epsilon
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return Norm("layer" if is_torch else family.norm, weight, bias, float(epsilon), family.norm_offset)


def rows_of(name: str, module: Any, share: int = 0, of: int = 1) -> Rows:
    """Return the `share`-th part of `of` equal parts of a projection's rows."""
    if not isinstance(module, QuantLinear):
        raise Unsupported(
            f"The decoder needs quantized layers, and {name} of a block is {type(module).__name__}."
        )
    if module.reason_for_reference():
        raise Unsupported(
            "The decoder needs weights that native kernels can hold, such as groups of 32, 64 or 128."
        )
    count = module.out_features // of
    if share and count % 8:
        raise Unsupported(
            f"The decoder needs parts of a multiple of 8 outputs, and those of {name} have {count}."
        )
    return Rows(module, share * count, (share + 1) * count)


def chosen(config: Any, value: bool | str) -> bool:
    """Return a value of the table, which may be an attribute of the config."""
    return value if isinstance(value, bool) else bool(getattr(config, value))


def kind_of(config: Any, index: int) -> str | None:
    """Return the kind of a layer, such as "sliding_attention"; None in a model without kinds."""
    kinds = getattr(config, "layer_types", None)
    return None if kinds is None else kinds[index]

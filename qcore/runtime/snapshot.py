"""Detect changes of a model since its native description was read.

The description holds addresses and constants, so it must not outlive a change of a module, a weight, an
activation precision, a hook or the config. PyTorch does not count such changes. A snapshot keeps the state at
reading, and `holds` compares it with the present state before every step: a few comparisons of whole lists,
which run in C.
"""

import copy
from collections.abc import Mapping
from operator import attrgetter, is_
from typing import Any, cast

from torch import nn

from qcore.base.torch_internals import global_hooks, registered
from qcore.base.transformers_internals import collects_outputs
from qcore.layers.modules import QuantExperts, QuantizedModule, QuantLinear
from qcore.layers.text_part import text_part

_packed, _activations = attrgetter("packed"), attrgetter("activations")


class Snapshot:
    """The state of a causal language `model`, without towers, at the time of the snapshot."""

    def __init__(self, model: nn.Module):
        part = text_part(cast(Any, model))
        everything = [module for name, module in model.named_modules() if not part.tower_of(name)]
        # the matrices of fused experts are many, and never called: neither hooks nor forwards of theirs count
        inside = {
            matrix for each in everything if isinstance(each, QuantExperts) for matrix in each.matrices()
        }
        modules = [module for module in everything if module not in inside]
        own = list(map(registered, modules))
        tables: list[Mapping] = [
            table for each in own for table in (each.children, each.hooks, each.pre_hooks)
        ]
        tables += global_hooks()
        self._empty = [table for table in tables if not table]
        self._empty += [each.parameters for each in own if not each.parameters]  # a bias may be added
        self._filled = [table for table in tables if table]
        self._contents = [dict(table) for table in self._filled]
        self._attributes = [vars(module) for module in modules]
        self._forwards = [attributes.get("forward") for attributes in self._attributes]
        self._quantized = [module for module in everything if isinstance(module, QuantizedModule)]
        self._packed = list(map(_packed, self._quantized))
        self._linear = [module for module in modules if isinstance(module, QuantLinear | QuantExperts)]
        self._activations = list(map(_activations, self._linear))
        self._tensors = [
            (table, name, tensor, None if tensor is None else tensor.data_ptr())
            for module, each in zip(modules, own, strict=True)
            for table in (each.parameters, each.buffers)
            if not (table is each.buffers and isinstance(module, QuantizedModule))  # gone once packed
            for name, tensor in table.items()
        ]
        self._config = part.config
        self._values = copy.deepcopy(vars(part.config))

    def holds(self) -> bool:
        """Return whether the model is unchanged since."""
        return (
            not any(self._empty)
            and self._filled == self._contents
            and [attributes.get("forward") for attributes in self._attributes] == self._forwards
            and all(map(is_, map(_packed, self._quantized), self._packed))
            and list(map(_activations, self._linear)) == self._activations
            and all(
                table.get(name) is tensor and (tensor is None or tensor.data_ptr() == address)
                for table, name, tensor, address in self._tensors
            )
            and vars(self._config) == self._values
        )


def is_hooked(*modules: nn.Module) -> bool:
    """Return whether forward hooks run around one of `modules`. The hooks with which transformers collects
    outputs do not count."""
    if any(global_hooks()):
        return True
    own = map(registered, modules)
    hooks = (hook for each in own for hook in (*each.hooks.values(), *each.pre_hooks.values()))
    return not all(map(collects_outputs, hooks))


def is_replaced(*modules: nn.Module) -> bool:
    """Return whether one of `modules` has an instance-level forward in place of its class's."""
    return any("forward" in vars(module) for module in modules)

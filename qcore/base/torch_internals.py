"""All undocumented parts of torch that qcore uses, each with one test in tests/base/test_torch_internals.py.
No other file of qcore names a private attribute of torch, apart from the overrides listed in that file."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn


def is_saved(module: nn.Module, buffer: str) -> bool:
    """Return whether the module's own buffer is part of its state_dict."""
    return buffer not in module._non_persistent_buffers_set


def put_tensor(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    """Replace a registered parameter or buffer and keep its registration (saved or not); None leaves the name
    without a tensor."""
    registered: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
    registered[name] = tensor


def put_buffers(module: nn.Module, tensors: Mapping[str, torch.Tensor | None]) -> None:
    """Replace several registered buffers atomically: a thread that copies `registered(module).buffers`
    meanwhile gets all old ones or all new ones."""
    module._buffers.update(tensors)


class Registered(NamedTuple):
    """The dictionaries in which a module keeps its children, tensors and forward hooks, by name or number."""

    children: dict[str, nn.Module | None]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, torch.Tensor | None]
    hooks: dict[int, Callable]
    pre_hooks: dict[int, Callable]


def registered(module: nn.Module) -> Registered:
    """Return the module's own dictionaries, not copies: they show later changes."""
    return Registered(
        module._modules, module._parameters, module._buffers, module._forward_hooks, module._forward_pre_hooks
    )


def global_hooks() -> tuple[dict[int, Callable], dict[int, Callable]]:
    """Return the dictionaries of the hooks and pre-hooks that run around the forward of every module."""
    from torch.nn.modules import module

    return module._global_forward_hooks, module._global_forward_pre_hooks


def put_first_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register `parameter` before all others of `module`, so that `next(module.parameters())`, by which
    libraries find a model's device and data type, returns it."""
    others = list(module._parameters.items())
    module._parameters.clear()
    module.register_parameter(name, parameter)
    module._parameters.update(others)


def storage_key(tensor: torch.Tensor) -> tuple[Hashable, Callable[[], bool]]:
    """Return (key, `is_gone`) of the storage of `tensor`. Tensors that share a storage have equal keys;
    `is_gone()` is True once the storage is freed and its key may be reused."""
    from torch.multiprocessing.reductions import StorageWeakRef

    storage = tensor.untyped_storage()
    return storage._cdata, StorageWeakRef(storage).expired

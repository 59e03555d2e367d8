"""A simulated accelerator, for tests of device placement on machines without one.

Inside `simulated()` the device "cuda" exists. Its tensors compute with the CPU's own kernels, so that results
can be compared with those of the CPU bit by bit. They refuse what a GPU refuses: an operation with a tensor
of the CPU (other than a single number or an index), and `numpy()`. Reads of values by the host are counted,
because the host waits for a GPU at each of them.

What it does not show: the kernels of a GPU, their rounding, their speed and their memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from qcore.library import loading

DEVICE = torch.device("cuda", 0)
FREE = 1 << 30  # bytes
aten = torch.ops.aten
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}  # take indices of the CPU
_BETWEEN = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}
_TWO = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({})"


@dataclass
class Traffic:
    """What passed between the host and the device: reads of values `to_host` by operation, and the number of
    tensors `to_device`."""

    to_host: Counter[str] = field(default_factory=Counter)
    to_device: int = 0


_traffic = Traffic()


def to_tiles(codes: torch.Tensor, inner: int) -> torch.Tensor:
    """`_convert_weight_to_int4pack` with the checks and the result's shape of the GPU's, in our order."""
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    assert codes.dtype == torch.uint8 and rows % 8 == 0 and columns % (inner * 16) == 0
    return codes.view(torch.int32).view(rows // 8, columns // (inner * 16), 32, inner // 2)


def by_tiles(x: torch.Tensor, tiles: torch.Tensor, group: int, scales: torch.Tensor) -> torch.Tensor:
    """`_weight_int4pack_mm`, by the operator of the CPU, with the checks of the GPU's."""
    rows, columns = tiles.shape[0] * 8, tiles.shape[1] * 16 * 2 * tiles.shape[3]
    assert x.dtype == scales.dtype == torch.bfloat16 and x.is_contiguous() and scales.is_contiguous()
    assert x.shape[1] == columns and group in (32, 64, 128, 256)
    assert scales.shape == (columns // group, rows, 2)
    pairs = tiles.reshape(-1).view(torch.uint8).view(rows, -1)
    codes = (
        torch.stack((pairs >> 4, pairs & 15), 2).flatten(1).int()
    )  # the first of two codes in the high bits
    more = -rows % 16
    packed = aten._convert_weight_to_int4pack_for_cpu(pad(codes, (0, 0, 0, more)), 8)
    return aten._weight_int4pack_mm_for_cpu(x, packed, group, pad(scales, (0, 0, 0, more)))[:, :rows]


# Operators that a GPU has and the CPU has not, or not for all dtypes: the same in terms of CPU tensors.
OPERATORS: dict[Any, Any] = {
    aten.histc.default: lambda given, *rest: aten.histc.default(given.float(), *rest).to(given.dtype),
    aten._convert_weight_to_int4pack.default: to_tiles,
    aten._weight_int4pack_mm.default: by_tiles,
}


class OnDevice(torch.Tensor):
    """A tensor on the simulated device; `held` is its content."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cpu",
        )
        made.held = held
        return made

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    def __repr__(self):
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        given = pytree.tree_leaves((arguments, keywords))
        foreign = [
            value for value in given if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice)
        ]
        if function not in _BETWEEN | _INDEXING and any(value.ndim for value in foreign):
            raise RuntimeError(_TWO.format(function))
        device = keywords.pop("device", None)
        if device is not None and torch.device(device).type != DEVICE.type:
            keywords["device"] = device
        to_host = device is not None and torch.device(device).type == "cpu"
        if function is aten._local_scalar_dense.default or to_host:
            _traffic.to_host[str(function)] += 1
        if function is aten.copy_.default and not isinstance(arguments[0], OnDevice):
            _traffic.to_host["copy_"] += 1
            to_host = True
        bare = {id(value): value.held for value in given if isinstance(value, OnDevice)}
        whole = {id(held): value for value in given if isinstance(value, OnDevice) for held in (value.held,)}
        take = lambda value: bare.get(id(value), value)  # noqa: E731
        arguments, keywords = pytree.tree_map(take, (arguments, keywords))
        result = OPERATORS.get(function, function)(*arguments, **keywords)
        if to_host:
            return result

        def wrap(value):
            if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
                return value
            return (
                whole[id(value)] if id(value) in whole else OnDevice(value)
            )  # the same for in-place results

        return pytree.tree_map(wrap, result)


class _Simulated(TorchFunctionMode):
    """Makes tensors for the device "cuda", for which torch would look for a driver, and answers for the
    memory of wrappers, which have none."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        first = arguments[0] if arguments else None
        if isinstance(first, OnDevice):
            if function is torch.Tensor.numpy:
                raise TypeError("can't convert cuda:0 device type tensor to numpy.")
            if function is torch.Tensor.tolist:
                _traffic.to_host["tolist"] += 1
                return first.held.tolist()
            if function is torch.Tensor.cpu:
                _traffic.to_host["cpu"] += 1
                return first.held.clone()
            if function is torch.Tensor.data_ptr:
                return first.held.data_ptr()
            if function is torch.Tensor.untyped_storage:
                return first.held.untyped_storage()
            if function is torch.Tensor.data.__set__:
                first.held = arguments[1].held
                return None
            if function is torch.nn.functional.one_hot:  # makes tensors in C++, out of sight
                return OnDevice(function(first.held, *arguments[1:], **keywords))
        if function in (torch.Tensor.to, torch.Tensor.cuda) and isinstance(first, torch.Tensor):
            return self._moved(function, first, arguments[1:], keywords)
        if _is_device(keywords.get("device")):
            keywords.pop("device")
            if not any(isinstance(value, OnDevice) for value in pytree.tree_leaves(arguments)):
                _traffic.to_device += function is torch.tensor
                return OnDevice(function(*arguments, **keywords, device="cpu"))
        return function(*arguments, **keywords)

    def _moved(self, function, tensor, arguments, keywords):
        wanted = [*arguments, *keywords.values()]
        if isinstance(tensor, OnDevice):
            keep = lambda value: not _is_device(value)  # noqa: E731
            if any(isinstance(value, torch.Tensor) and not isinstance(value, OnDevice) for value in wanted):
                _traffic.to_host["cpu"] += 1
                return tensor.held.clone().to(*arguments, **keywords)
            if any(isinstance(value, OnDevice) for value in wanted):
                arguments = tuple(
                    value.dtype if isinstance(value, OnDevice) else value for value in arguments
                )
            arguments = tuple(filter(keep, arguments))
            keywords = {name: value for name, value in keywords.items() if keep(value)}
            return tensor.to(*arguments, **keywords) if arguments or keywords else tensor
        like = next((value for value in wanted if isinstance(value, OnDevice)), None)
        if like is None and function is not torch.Tensor.cuda and not any(map(_is_device, wanted)):
            return function(tensor, *arguments, **keywords)
        _traffic.to_device += 1
        dtype = next((value for value in wanted if isinstance(value, torch.dtype)), tensor.dtype)
        made = OnDevice(tensor.detach().to(like.dtype if like is not None else dtype, copy=True))
        return (
            made.requires_grad_() if tensor.requires_grad and not torch.is_inference_mode_enabled() else made
        )


def _is_device(value: object) -> bool:
    if not isinstance(value, (str, torch.device)):
        return False
    try:
        return torch.device(value).type == DEVICE.type
    except RuntimeError:
        return False


def _assemble(checkpoint, tensors, device, assemble=loading.assemble):
    """Load on the CPU, then move: transformers' loader asks the driver, and works in threads."""
    model = assemble(checkpoint, tensors, "cpu")
    return model if device == "cpu" else model.to(device)


@contextmanager
def simulated() -> Iterator[Traffic]:
    """Give this process the device "cuda", and yield what passes between it and the host inside."""
    _traffic.to_host.clear()
    _traffic.to_device = 0
    patched = ExitStack()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `Module.to` makes new parameters
    for place, name, value in (
        (torch.cuda, "get_device_capability", lambda device=None: (8, 0)),
        (torch.accelerator, "is_available", lambda: True),
        (torch.accelerator, "current_accelerator", lambda: DEVICE),
        (torch.accelerator, "get_memory_info", lambda device: (FREE, 2 * FREE)),
        (torch.accelerator, "reset_peak_memory_stats", lambda device: None),
        (torch.accelerator, "max_memory_allocated", lambda device: 12345),
        (torch.accelerator, "memory_allocated", lambda device: 2345),
        (torch.accelerator, "synchronize", lambda device: None),
        (torch.accelerator, "empty_cache", lambda: None),
        (loading, "assemble", _assemble),
    ):
        patched.enter_context(mock.patch.object(place, name, value))
    try:
        with _Simulated():
            yield _traffic
    finally:
        patched.close()
        torch.__future__.set_overwrite_module_params_on_conversion(before)

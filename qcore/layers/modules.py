"""Drop-in modules with quantized weights; a model with them remains an ordinary Hugging Face model.

Each keeps the parts of a `QuantizedTensor` as buffers (so `state_dict`, `to` and `safetensors` see them) and
the format as a plain attribute. They replace `nn.Linear`, GPT-2's `Conv1D`, `nn.Embedding` and the fused
(experts, N, K) parameters of a mixture of experts.

When a layer runs on a machine with native kernels, it repacks its weight for them and frees the buffers: the
same bits in another order, held once. On a GPU the parts wait in the memory of the host meanwhile. Saving, or
moving to a device, restores the parts bit for bit.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from qcore.base.torch_internals import put_buffers, registered, storage_key
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.kernels import dispatch
from qcore.kernels.dispatch import Executable
from qcore.kernels.gpu import GpuWeight
from qcore.kernels.packed import PackedWeight

_packing = threading.RLock()


@dataclass(frozen=True)
class _Shared:
    """A packed weight, and the parts that it was packed from, while another layer still holds them."""

    is_gone: Callable[[], bool]  # whether the storage of the codes was freed
    packed: weakref.ref
    parts: dict[str, weakref.ref]

    def held_parts(self) -> dict[str, torch.Tensor] | None:
        """Return the parts if all of them still exist."""
        held = {name: part for name, ref in self.parts.items() if (part := ref()) is not None}
        return held if len(held) == len(self.parts) else None


# by the storage of the codes and the shape and format of the weight, so that tied weights are packed once
_shared: dict[tuple, _Shared] = {}


class QuantizedModule(nn.Module):
    """Base of the modules: holds one `QuantizedTensor`, which `quantized` returns."""

    def __init__(self, weight: QuantizedTensor):
        super().__init__()
        self.format: Format = weight.format
        self.shape = weight.shape
        self.packed: PackedWeight | GpuWeight | None = None
        self._key: tuple | None = None  # of `packed` in `_shared`
        for name, part in weight.parts().items():
            self.register_buffer(name, part, persistent=weight.is_stored(name))

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight (N, K). Safe while another thread packs or restores the layer."""
        parts = dict(registered(self).buffers)  # one copy, because the parts are freed and restored together
        if parts["codes"] is not None:
            return self._of(parts)
        with _packing:
            return self._of(registered(self).buffers) if self.packed is None else self.packed.unpack()

    def _of(self, parts: dict[str, torch.Tensor | None]) -> QuantizedTensor:
        held = {name: part for name in QuantizedTensor.PARTS if (part := parts.get(name)) is not None}
        return QuantizedTensor(self.format, self.shape, **held)

    def reason_for_reference(self) -> str | None:
        """Return None if a native kernel runs this layer, else the reason for the plain-torch reference. Does
        not pack the weight."""
        if isinstance(self.packed, PackedWeight):
            return None
        return dispatch.reason_for_reference(self.quantized)

    def executable(self) -> Executable:
        """Return the weight in the fastest form on this machine. If that is a packed form, free the
        buffers."""
        if (packed := self.packed) is not None:
            return packed
        weight = self.quantized
        activations = getattr(self, "activations", None)  # None: rows are looked up
        if (pack := dispatch.packer(weight, activations)) is None:
            return dispatch.packed(weight, activations)  # unpacked; warns if the kernels are missing
        with _packing:
            if self.packed is None:
                weight = self.quantized
                self.packed, self._key = _pack_shared(weight, pack)
                put_buffers(self, dict.fromkeys(weight.parts()))
            return self.packed

    def restore(self) -> None:
        """Undo `executable`: restore the parts as buffers. Layers that share a weight share its parts
        again, also with layers that have not run."""
        with _packing:
            if self.packed is not None:
                put_buffers(self, self._held_parts() or self.packed.unpacked_once.parts())
                self.packed = None

    def _held_parts(self) -> dict[str, torch.Tensor] | None:
        """Return the parts from which `packed` was made, if a layer that shares them and has not run holds
        them."""
        known = None if self._key is None else _shared.get(self._key)
        return known.held_parts() if known is not None and known.packed() is self.packed else None

    def _apply(self, *args, **kwargs):
        self.restore()
        return super()._apply(*args, **kwargs)

    def _save_to_state_dict(self, *args, **kwargs):
        self.restore()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self.restore()
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight (N, K), computed at each access. For code that inspects a layer; it is
        slow."""
        return self.quantized.dequantize()


class QuantLinear(QuantizedModule):
    """y = x · Wᵀ + bias with a quantized W. `activations` is one of the names in `kernels.dispatch`, such as
    "fp32" or "int8"."""

    def __init__(self, weight: QuantizedTensor, bias: torch.Tensor | None, activations: str):
        super().__init__(weight)
        self.out_features, self.in_features = weight.shape
        self.activations = activations
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return dispatch.linear(x, self.executable(), self.bias, self.activations)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.format}, activations={self.activations}"


class QuantEmbedding(QuantizedModule):
    """An embedding table whose rows are dequantized when they are looked up, times `embed_scale`."""

    def __init__(self, weight: QuantizedTensor, padding_idx: int | None = None, embed_scale: float = 1.0):
        super().__init__(weight)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx, self.embed_scale = padding_idx, embed_scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) -> (..., embedding_dim), float32."""
        rows = dispatch.rows(self.executable(), ids)
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale


def _pack_shared(
    weight: QuantizedTensor, pack: Callable[[QuantizedTensor], PackedWeight | GpuWeight]
) -> tuple[PackedWeight | GpuWeight, tuple]:
    """Pack `weight`, or find the packed form of a layer that shares its storage. Return it with its key in
    `_shared`."""
    memory, is_gone = storage_key(weight.codes)
    for key in [key for key, each in _shared.items() if each.is_gone() or each.packed() is None]:
        del _shared[key]
    key = (memory, weight.codes.storage_offset(), weight.shape, weight.format)
    found = _shared[key].packed() if key in _shared else None
    if found is None:
        found = pack(weight)
        parts = {name: weakref.ref(part) for name, part in weight.parts().items()}
        _shared[key] = _Shared(is_gone, weakref.ref(found), parts)
    return found, key


class FusedWeight(nn.Module, ABC):
    """Stands in for a parameter (E, rows, columns) in the products of transformers' expert modules: indexing
    with an expert's number, and `torch.bmm` with the weight or with `weight.transpose(1, 2)`. One expert is
    dequantized at a time. Other uses raise `TypeError`."""

    shape: tuple[int, int, int]

    @abstractmethod
    def matrix(self, expert: int) -> torch.Tensor:
        """Return one expert's weight (rows, columns) in float32."""

    def __getitem__(self, expert: int | torch.Tensor) -> torch.Tensor:
        return self.matrix(int(expert))

    def transpose(self, first: int, second: int) -> _Transposed:
        """Return the weight with rows and columns exchanged. Raise `TypeError` for other dimensions."""
        if {first % 3, second % 3} != {1, 2}:
            raise TypeError("Fused experts can only exchange the rows and columns of their matrices.")
        return _Transposed(self)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        return _multiplied(function, arguments, keywords or {})


class _Transposed:
    """The view that `FusedWeight.transpose` returns."""

    def __init__(self, weight: FusedWeight):
        experts, rows, columns = weight.shape
        self.weight, self.shape = weight, (experts, columns, rows)

    def matrix(self, expert: int) -> torch.Tensor:
        """Return one expert's weight, transposed."""
        return self.weight.matrix(expert).T

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        return _multiplied(function, arguments, keywords or {})


def _multiplied(function: Callable, arguments: tuple, keywords: dict) -> torch.Tensor:
    """Return the batched product of inputs (E, T, rows) with a fused weight (E, rows, columns)."""
    if function is not torch.bmm or keywords or not isinstance(arguments[0], torch.Tensor):
        raise TypeError(
            f"{getattr(function, '__name__', function)} reads fused experts as one tensor. Only torch.bmm "
            "and products of single experts are supported."
        )
    inputs, weight = arguments
    return torch.stack([each @ weight.matrix(expert) for expert, each in enumerate(inputs)])


class QuantExperts(FusedWeight):
    """A fused expert parameter (E, N, K), multiplied by activations of the precision `activations`
    (`layers/expert_forward.py`), or dequantized per expert where transformers' own code reads it.

    With `transposed`, the model stores (E, K, N): groups still run along the inputs K, and indexing gives (K,
    N).
    """

    def __init__(self, experts: list[QuantizedTensor], transposed: bool, activations: str):
        super().__init__()
        self.experts = nn.ModuleList(QuantizedModule(expert) for expert in experts)
        self.transposed = transposed
        rows, columns = experts[0].shape
        self.shape = (len(experts), columns, rows) if transposed else (len(experts), rows, columns)
        self.activations = activations

    def matrices(self) -> list[QuantizedModule]:
        """Return the modules that hold the weight (N, K) of each expert."""
        return cast(list[QuantizedModule], list(self.experts))

    def matrix(self, expert: int) -> torch.Tensor:
        """Return one expert's weight as the model stores it."""
        weight = cast(QuantizedModule, self.experts[expert]).weight
        return weight.T if self.transposed else weight


class StoredLinear(nn.Module):
    """A linear layer stored in 16 bits and computed in the inputs' dtype: each forward widens the weight."""

    def __init__(self, weight: nn.Parameter, bias: torch.Tensor | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return nn.functional.linear(
            x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        )


class StoredEmbedding(nn.Module):
    """An embedding stored in 16 bits that returns float32, multiplied by `embed_scale`."""

    def __init__(self, weight: nn.Parameter, padding_idx: int | None = None, embed_scale: float = 1.0):
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx, self.embed_scale = padding_idx, embed_scale
        self.weight = weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) -> (..., embedding_dim), float32."""
        rows = nn.functional.embedding(ids, self.weight).float()
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale


class StoredExperts(FusedWeight):
    """A fused expert parameter stored in 16 bits; one expert's weight at a time is widened to float32."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.stored = weight
        self.shape = cast(tuple[int, int, int], tuple(weight.shape))

    def matrix(self, expert: int) -> torch.Tensor:
        """Return one expert's weight in float32."""
        return self.stored[expert].float()


class Widen(nn.Module):
    """A parametrization: the parameter is stored in 16 bits and read as float32. For norms, biases and other
    small tensors."""

    def forward(self, stored: torch.Tensor) -> torch.Tensor:
        """Any shape, unchanged."""
        return stored.float()

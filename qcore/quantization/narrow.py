"""A model stored in 16 bits. Where the hardware is fast in that type, it also computes in it; elsewhere each
weight is widened to float32 on use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.weak import WeakTensorKeyDictionary

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.transformers_internals import loaded_types, use_eager_experts
from qcore.kernels.precision import computes_fast
from qcore.layers.embedding import is_embedding, scale_of
from qcore.layers.experts import expert_layouts
from qcore.layers.inventory import dtype_name, inventory, kept_row, plain_name
from qcore.layers.linear import is_linear
from qcore.layers.modules import StoredEmbedding, StoredExperts, StoredLinear, Widen
from qcore.recipes.ledger import LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def store_as(model: PreTrainedModel, name: str, report: Progress) -> list[LedgerRow]:
    """Store every floating-point tensor in the dtype `name`, but those that transformers keeps in float32.
    Compute in float32 if the hardware is slow in that dtype."""
    dtype, before = (
        DTYPES[name],
        {full: (tensor.dtype, tensor.nbytes) for full, tensor, _ in inventory(model)},
    )
    types = loaded_types(model, dtype)
    _check_range(model, dtype)
    device = next(model.parameters()).device
    if computes_fast(dtype, device):
        _narrow(model, types)
    else:
        _store_narrow(model, dtype, types, report)
    rows = []
    for full, tensor, shared in inventory(model):
        full = plain_name(full)
        old_dtype, old_bytes = before[full]
        row = kept_row(
            full,
            tensor,
            shared,
            None if tensor.dtype != old_dtype else _why_unchanged(types.get(full, dtype), dtype),
        )
        label = name if tensor.dtype == dtype and dtype != torch.float32 else None
        rows.append(
            replace(row, dtype=dtype_name(old_dtype), format=label, bytes_before=0 if shared else old_bytes)
        )
    return rows


def _why_unchanged(own: torch.dtype, dtype: torch.dtype) -> str:
    if own != dtype:
        return f"Kept: transformers computes it in {dtype_name(own)}, whatever the type of the model."
    return f"Kept in {dtype_name(dtype)}, the type it was loaded in."


def _narrow(model: PreTrainedModel, types: Mapping[str, torch.dtype]) -> None:
    """Give every tensor its type, and keep ties. Buffers that no file holds, such as rotary frequencies, have
    one, too."""
    made = WeakTensorKeyDictionary()
    for owner, module in model.named_modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for last, tensor in own:
            full = f"{owner}.{last}" if owner else last
            if not tensor.is_floating_point():
                continue
            if tensor not in made and full in types:
                narrowed = tensor.detach().to(types[full])
                if isinstance(tensor, nn.Parameter):
                    narrowed = nn.Parameter(narrowed, tensor.requires_grad)
                made[tensor] = narrowed
            setattr(module, last, made.get(tensor, tensor))


def _check_range(model: PreTrainedModel, dtype: torch.dtype) -> None:
    limit = torch.finfo(dtype).max
    for full, tensor, _ in inventory(model):
        if (
            tensor.is_floating_point()
            and torch.finfo(tensor.dtype).max > limit
            and tensor.numel()
            and tensor.abs().max() > limit
        ):
            raise InputError(
                f"{full} holds values above {limit:.4g}, the largest that {dtype_name(dtype)} can store. "
                "Use bf16 or fp32."
            )


def _store_narrow(
    model: PreTrainedModel, dtype: torch.dtype, types: Mapping[str, torch.dtype], report: Progress
) -> None:
    narrowed: dict[nn.Parameter, nn.Parameter] = {}  # so that tied parameters stay tied

    def narrow(parameter: Any) -> nn.Parameter:
        if parameter not in narrowed:
            narrowed[parameter] = nn.Parameter(parameter.to(dtype), requires_grad=False)
        return narrowed[parameter]

    modules = [
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    fused = expert_layouts(model)
    for i, (name, module) in enumerate(modules):
        report(i, len(modules), name)
        parent_name, _, last = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        own = [f"{name}.{each}" if name else each for each, _ in module.named_parameters(recurse=False)]
        if not any(types.get(each, dtype) == dtype for each in own):
            continue
        if is_linear(module):
            bias = None if module.bias is None else narrow(module.bias)
            setattr(parent, last, StoredLinear(narrow(module.weight), bias))
        elif is_embedding(module):
            setattr(
                parent, last, StoredEmbedding(narrow(module.weight), module.padding_idx, scale_of(module))
            )
        else:
            _narrow_in_place(name, module, narrow, fused, types)


def _narrow_in_place(
    owner: str,
    module: nn.Module,
    narrow: Callable[[nn.Parameter], nn.Parameter],
    fused: Collection[str],
    types: Mapping[str, torch.dtype],
) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        if types.get(f"{owner}.{name}") == torch.float32:
            continue
        if f"{owner}.{name}" in fused:
            delattr(module, name)
            setattr(module, name, StoredExperts(narrow(parameter)))
            use_eager_experts(module)
        else:
            setattr(module, name, narrow(parameter))
            parametrize.register_parametrization(module, name, Widen(), unsafe=True)

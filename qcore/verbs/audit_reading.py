"""The tensors of one stored weight by role, mapped from the file: only what a check reads is in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError
from qcore.base.tensor_file import TORCH_NAMES
from qcore.interop.ggml_blocks import LAYOUTS
from qcore.models.headers import TensorInfo
from qcore.models.mapping import read_file
from qcore.verbs.audit_weights import GGML, StoredWeight

if TYPE_CHECKING:
    from qcore.verbs.audit_subject import Subject

_EIGHT_BITS = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


def parts_of(subject: Subject, weight: StoredWeight) -> dict[str, torch.Tensor]:
    """Return the tensors of `weight` by role. Of a weight in one of ggml's types, return the float scales and
    minimums of its blocks. Raise `InputError` for a type whose values cannot be read, and for a file that can
    no longer be read."""
    if weight.kind == GGML:
        return _of_blocks(subject, weight)
    return {role: _mapped(subject, subject.tensors[name]) for role, name in weight.parts.items()}


def _mapped(subject: Subject, tensor: TensorInfo) -> torch.Tensor:
    viewed = None
    if tensor.dtype not in TORCH_NAMES:
        viewed = _EIGHT_BITS.get(tensor.dtype)
        raw = (*tensor.shape[:-1], tensor.shape[-1]) if viewed is not None else (tensor.nbytes,)
        tensor = replace(tensor, dtype="U8", shape=raw)
    try:
        found = read_file(subject.folder / tensor.file, {"": tensor})[""]
    except OSError as error:
        raise InputError(f"{tensor.file} can no longer be read: {error}.") from error
    return found if viewed is None else found.view(viewed)


def _of_blocks(subject: Subject, weight: StoredWeight) -> dict[str, torch.Tensor]:
    layout = LAYOUTS.get(weight.form)
    if layout is None:
        raise InputError(f"The blocks of {weight.form} are not known here.")
    tensor = subject.tensors[weight.parts["weight"]]
    blocks = _mapped(
        subject, replace(tensor, dtype="U8", shape=(tensor.nbytes // layout.bytes, layout.bytes))
    )
    found, start = {}, 0
    for field, size in layout.sizes().items():
        if field in ("scale", "minimum"):
            found[field] = blocks[:, start : start + size].contiguous().view(torch.float16).squeeze(-1)
        start += size
    return found

"""Export to AWQ's format, see `qcore.interop.awq`: for AutoAWQ's successors, transformers with GPTQModel, and
vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import awq
from qcore.library.packed_folder import PackedFolder
from qcore.library.stored_tensors import Stored, formats_of


class _Awq(PackedFolder):
    name = "awq"
    title = "AWQ"
    one_format = True

    def reason_against(self, format: Format, shape: tuple[int, int], kind: str) -> str | None:
        return awq.reason_against(format, shape)

    def encode(self, weight: QuantizedTensor) -> dict[str, torch.Tensor]:
        return awq.encode(weight)

    def settings(self, plan: Sequence[Stored], kept: Sequence[str]) -> dict[str, Any]:
        return {"quantization_config": awq.config(next(iter(formats_of(plan).values())), kept=kept)}


TARGET = _Awq()

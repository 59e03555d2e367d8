"""Export to bitsandbytes, see `qcore.interop.bitsandbytes`: for transformers and vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import bitsandbytes
from qcore.library.packed_folder import PackedFolder
from qcore.library.stored_tensors import Stored, formats_of


class _Bitsandbytes(PackedFolder):
    name = "bnb"
    title = "bitsandbytes"
    one_format = True

    def reason_against(self, format: Format, shape: tuple[int, int], kind: str) -> str | None:
        return bitsandbytes.reason_against(format, shape)

    def encode(self, weight: QuantizedTensor) -> dict[str, torch.Tensor]:
        return bitsandbytes.encode(weight)

    def settings(self, plan: Sequence[Stored], kept: Sequence[str]) -> dict[str, Any]:
        return {"quantization_config": bitsandbytes.config(next(iter(formats_of(plan).values())), kept=kept)}

    def notes(self, formats: Mapping[str, Format]) -> Iterator[str]:
        if bitsandbytes.INT8 in formats.values():
            yield (
                "bitsandbytes rounds activations to 8 bits where it multiplies int8 weights (LLM.int8), so "
                "logits differ from qcore's int8, which reads them in 16 bits."
            )


TARGET = _Bitsandbytes()

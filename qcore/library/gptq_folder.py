"""Export to GPTQ's format, see `qcore.interop.gptq`: for GPTQModel, transformers, vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import gptq
from qcore.library.packed_folder import PackedFolder
from qcore.library.stored_tensors import Stored, formats_of


class Gptq(PackedFolder):
    """GPTQ in one of its two versions."""

    title = "GPTQ"
    readers = "transformers and GPTQModel"
    kinds = frozenset({"conv1d"})
    one_format = True

    def __init__(self, name: str, version: str):
        self.name, self.version = name, version  # type: ignore[misc]

    def reason_against(self, format: Format, shape: tuple[int, int], kind: str) -> str | None:
        return gptq.reason_against(format, shape)

    def encode(self, weight: QuantizedTensor) -> dict[str, torch.Tensor]:
        return gptq.encode(weight, self.version)

    def settings(self, plan: Sequence[Stored], kept: Sequence[str]) -> dict[str, Any]:
        formats = formats_of(plan)
        first = next(iter(formats.values()))
        return {"quantization_config": gptq.config(first, version=self.version, modules=formats, kept=kept)}

    def notes(self, formats: Mapping[str, Format]) -> Iterator[str]:
        first = next(iter(formats.values()))
        if not (first.symmetric and first.bits in (4, 8)):
            near = f"int{4 if first.bits < 8 else 8}-g{first.group_size or 128}-sym"
            yield (f"vLLM reads GPTQ files of symmetric 4- and 8-bit codes only, such as {near}.")


TARGET = Gptq("gptq", gptq.V2)

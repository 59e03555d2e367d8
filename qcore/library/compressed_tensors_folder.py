"""Export to compressed-tensors, see `qcore.interop.compressed_tensors`: for vLLM, SGLang and transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import compressed_tensors
from qcore.library.packed_folder import PackedFolder
from qcore.library.stored_tensors import Stored, formats_of

_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # vLLM computes them as one matrix


class _CompressedTensors(PackedFolder):
    name = "compressed-tensors"
    title = "compressed-tensors"
    readers = "transformers and vLLM"
    kinds = frozenset({"experts"})

    def reason_against(self, format: Format, shape: tuple[int, int], kind: str) -> str | None:
        if kind == "experts" and not format.symmetric:
            near = (
                f"int{format.bits}-g{format.group_size}-sym" if format.group_size else f"int{format.bits}-sym"
            )
            return (
                f"transformers reads experts from {self.title} files only in symmetric codes. The nearest "
                f"recipe is {near}."
            )
        return compressed_tensors.reason_against(format, shape)

    def encode(self, weight: QuantizedTensor) -> dict[str, torch.Tensor]:
        return compressed_tensors.encode(weight)

    def settings(self, plan: Sequence[Stored], kept: Sequence[str]) -> dict[str, Any]:
        return {"quantization_config": compressed_tensors.config(formats_of(plan), kept=kept)}

    def notes(self, formats: Mapping[str, Format]) -> Iterator[str]:
        yield (
            "transformers decompresses these weights when it loads or first runs the model: the file "
            "saves disk there, and neither memory nor time. vLLM multiplies the codes."
        )
        for module, format in formats.items():
            block, _, last = module.rpartition(".")
            for family in _FUSED:
                others = {formats.get(f"{block}.{name}") for name in family} if last == family[0] else set()
                if others - {format}:
                    yield (
                        f"{block} has several formats in {', '.join(family)}, which vLLM computes as one "
                        "matrix: it refuses such a model. transformers reads it."
                    )
                    return


TARGET = _CompressedTensors()

"""Export to MLX's affine quantization, see `qcore.interop.mlx`: for mlx-lm and LM Studio on Apple computers.

Embeddings and heads may be quantized, and each layer may have a format of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import mlx
from qcore.library.packed_folder import PackedFolder
from qcore.library.stored_tensors import Stored

if TYPE_CHECKING:
    from qcore.library.parameters import Parameters


class _Mlx(PackedFolder):
    name = "mlx"
    title = "MLX"
    readers = "mlx-lm"
    kinds = frozenset({"experts", "head", "embedding"})
    carries_unclaimed = False

    def reason_against(self, format: Format, shape: tuple[int, int], kind: str) -> str | None:
        return mlx.reason_against(format, shape)

    def encode(self, weight: QuantizedTensor) -> dict[str, torch.Tensor]:
        return mlx.encode(weight)

    def settings(self, plan: Sequence[Stored], kept: Sequence[str]) -> dict[str, Any]:
        sizes = {
            each.module: (each.format.bits, mlx.group_size(each.format, each.entry.matrix[1]) or 0)
            for each in plan
            if each.format is not None
        }
        made = mlx.config(sizes)
        return {"quantization": made, "quantization_config": made}

    def config(
        self, parameters: Parameters, plan: Sequence[Stored], kept: Sequence[str], dtypes: set[torch.dtype]
    ) -> dict[str, Any]:
        """Return config.json with the rotary embedding in the words of transformers 4, which mlx-lm reads."""
        config = super().config(parameters, plan, kept, dtypes)
        rope = getattr(parameters.model.config.get_text_config(), "rope_parameters", None) or {}
        if "rope_theta" in rope and "rope_theta" not in config:
            config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        return config

    def notes(self, formats: Mapping[str, Format]) -> Iterator[str]:
        if any(mlx.dtype(format) == torch.float32 for format in formats.values()):
            yield (
                "Scales and biases are stored in float32, because float16 does not hold scale × zero point "
                "exactly; MLX then computes in float32. Symmetric recipes such as int4-g64-sym, and "
                "affine4-g64, need 16 bits."
            )


TARGET = _Mlx()

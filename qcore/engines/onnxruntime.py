"""ONNX Runtime: the model exported to a graph by PyTorch and computed by a session, in float32, 8 or 4 bits.

    fp32    the exported graph as it is
    int8    quantized by onnxruntime.quantization.quantize_dynamic with its defaults: one scale a matrix, activations for each call
    int4    the codes of qcore's int4-g64, to the bit, as MatMulNBits: N·K / 2 bytes, N·K / 64 float32 scales and 4-bit zero points

The ledger counts what the file holds.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError
from qcore.base.home import home
from qcore.base.progress import Progress
from qcore.engines import EngineInfo, Variant, register
from qcore.engines.linears import importing
from qcore.recipes import Recipe
from qcore.recipes.ledger import LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INFO = EngineInfo(
    "onnxruntime",
    title="ONNX Runtime",
    library="onnxruntime",
    install="onnxruntime onnx onnxscript",
    recipes={
        "onnx-fp32": Variant(
            "fp32", "ONNX Runtime on the graph that PyTorch exports, nothing quantized", 32.0
        ),
        "onnx-int8": Variant(
            "int8",
            "ONNX Runtime quantize_dynamic: one scale per matrix, activations for each call",
            8.1,
            "int8",
            60_000_000,
        ),
        "onnx-int4": Variant("int4", "ONNX Runtime MatMulNBits with the codes of int4-g64", 4.6, "int4-g64"),
    },
    loaded_bytes=640_000_000,  # with what export leaves
    color="#4b9bab",
)


@register(INFO)
def apply(model: PreTrainedModel, recipe: Recipe, progress: Progress, quantize=None) -> list[LedgerRow]:
    """Export `model` to the recipe's variant (fp32, int8 or int4), and let a session of ONNX Runtime take its
    place."""
    with importing("ONNX Runtime"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        from qcore.engines.onnx.attached import attach
        from qcore.engines.onnx.run_onnx import OnnxModel
        from qcore.engines.onnx.writing import write
    if (recipe.modules.head, recipe.modules.embeddings) != ("keep", "keep"):
        raise InputError(
            f"{recipe.name} stores head and embeddings as ONNX Runtime's tools leave them. Leave both at keep."
        )
    (home() / "onnx").mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=home() / "onnx"))
    try:
        written = write(model, recipe, scratch, progress, quantize)
        progress(0, 0, "starting ONNX Runtime")
        attach(model, OnnxModel(written.path, torch.get_num_threads()))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # the session has read or mapped what it needs
    return list(written.rows)

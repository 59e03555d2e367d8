"""ONNX Runtime: the model exported to a graph by PyTorch and run in a session, in float32, 8 or 4 bits.

    fp32    the exported graph, not quantized
    int8    onnxruntime.quantization.quantize_dynamic with its defaults: one scale per matrix, activations
            quantized per call
    int4    exactly the codes of qcore's int4-g64, as MatMulNBits: N·K / 2 bytes, N·K / 64 float32 scales and
            4-bit zero points

The ledger counts the bytes in the file.
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
            "ONNX Runtime quantize_dynamic: one scale per matrix, activations quantized per call",
            8.1,
            "int8",
            60_000_000,
        ),
        "onnx-int4": Variant("int4", "ONNX Runtime MatMulNBits with the codes of int4-g64", 4.6, "int4-g64"),
    },
    loaded_bytes=640_000_000,  # includes memory that the export does not free
    color="#4b9bab",
)


@register(INFO)
def apply(model: PreTrainedModel, recipe: Recipe, progress: Progress, quantize=None) -> list[LedgerRow]:
    """Export `model` to the recipe's variant (fp32, int8 or int4), and replace its forward by a session of
    ONNX Runtime."""
    with importing("ONNX Runtime"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        from qcore.engines.onnx.attached import attach
        from qcore.engines.onnx.run_onnx import OnnxModel
        from qcore.engines.onnx.writing import write
    if (recipe.modules.head, recipe.modules.embeddings) != ("keep", "keep"):
        raise InputError(
            f"{recipe.name} stores head and embeddings in ONNX Runtime's own format. Leave both at keep."
        )
    (home() / "onnx").mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=home() / "onnx"))
    try:
        written = write(model, recipe, scratch, progress, quantize)
        progress(0, 0, "starting ONNX Runtime")
        attach(model, OnnxModel(written.path, torch.get_num_threads()))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # the session has read or mapped the files
    return list(written.rows)

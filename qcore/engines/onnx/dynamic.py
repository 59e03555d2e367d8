"""int8 by ONNX Runtime's `quantize_dynamic`, with the library's defaults.

Every matrix of a product, and every embedding, becomes 8-bit codes with one scale per matrix; activations are
quantized per call, with one scale for all tokens. This is known to cost much quality on language models,
whose activations have a few very large channels; it is measured here without changes.
"""

import logging
from pathlib import Path

from qcore.layers.select import matches

KEPT = "Kept: quantize_dynamic quantizes only matrices of products, and embeddings."


def quantize(source: Path, target: Path, skip: tuple[str, ...] = ()) -> Path:
    """Quantize the graph in the file `source` and write it to `target`; weights of modules that match a
    pattern in `skip` are unchanged. Return `target`."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    excluded = []
    if skip:
        for node in onnx.load(str(source), load_external_data=False).graph.node:
            names = [name.rpartition(".")[0] for name in node.input]
            if any(matches(name, pattern) for name in names for pattern in skip):
                excluded.append(node.name)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the library recommends a pre-processing for image models on every call
    try:
        quantize_dynamic(source, target, nodes_to_exclude=excluded, use_external_data_format=True)
    finally:
        root.setLevel(level)
    return target


def label(name: str, parts: list[str]) -> tuple[str | None, str | None]:
    """Return (format, reason) of a tensor: ("onnx-int8", None) if its parts include codes."""
    return ("onnx-int8", None) if any(part.endswith("_quantized") for part in parts) else (None, KEPT)

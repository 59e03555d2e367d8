"""int8 as ONNX Runtime's own `quantize_dynamic` makes it, with the library's defaults.

Every matrix that is multiplied by becomes 8-bit codes with one scale for the whole matrix; activations are
quantized for each call, one scale for all tokens together. Embeddings that are looked up are taken, too. On
language models, whose activations have a few very large channels, that is known to cost much quality; it is
measured here as it is.
"""

import logging
from pathlib import Path

from qcore.layers.select import matches

KEPT = "Kept: quantize_dynamic takes matrices that are multiplied by, and tables that are looked up."


def quantize(source: Path, target: Path, skip: tuple[str, ...] = ()) -> Path:
    """Quantize the graph at `source` into `target`; weights of modules that match a pattern in `skip` are
    left as they are."""
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
    root.setLevel(logging.ERROR)  # it recommends, at each call, a pre-processing for graphs of images
    try:
        quantize_dynamic(source, target, nodes_to_exclude=excluded, use_external_data_format=True)
    finally:
        root.setLevel(level)
    return target


def label(name: str, parts: list[str]) -> tuple[str | None, str | None]:
    """("onnx-int8", None) for a tensor with codes among its parts."""
    return ("onnx-int8", None) if any(part.endswith("_quantized") for part in parts) else (None, KEPT)

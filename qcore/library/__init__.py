"""Models in folders: find them, load them, save them.

    sources.py      `resolve`: from a name to a checked checkpoint
    outlines.py     `outline`, the same from headers alone: of a model on the hub no weights are fetched, no GGUF file is converted
    loading.py      weights into a model
    safetensors.py  quantized models, read and written
    manifest.py     qcore.json, held against the model and the files before anything is read
    sparse.py       pruned matrices without their zeros
    plain.py        models with ordinary weights that were pruned, trained or distilled
    onnx_folder.py  models exported to ONNX
    saving.py       a folder that appears whole

Nothing here unpickles a file or runs code that came with a model.
"""

from qcore.library.loading import Loaded, load
from qcore.library.outlines import is_foreign, outline
from qcore.library.sources import defaults, prepare, resolve

__all__ = ["Loaded", "defaults", "is_foreign", "load", "outline", "prepare", "resolve"]

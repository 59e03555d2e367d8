"""Models in folders: find them, load them, save them.

    sources.py      `resolve`: a name to a checked checkpoint
    outlines.py     `outline`: the same from headers only, without a download or conversion
    loading.py      loads weights into a model
    safetensors.py  quantized models, read and written
    manifest.py     qcore.json, validated against the model and the files
    sparse.py       pruned matrices without their zeros
    plain.py        models with ordinary weights that were pruned, trained or distilled
    exports.py      the targets of an export
    parameters.py   the weights of an export, one by one
    gguf_folder.py  models as GGUF files
    journal.py      an unfinished folder, and what of it is finished
    companions.py   what each export carries besides weights
    onnx_folder.py  models exported to ONNX
    saving.py       atomic creation of a model folder

No module here unpickles a file or runs code that comes with a model.
"""

from qcore.library.loading import Loaded, load
from qcore.library.outlines import is_foreign, outline
from qcore.library.sources import defaults, prepare, resolve

__all__ = ["Loaded", "defaults", "is_foreign", "load", "outline", "prepare", "resolve"]

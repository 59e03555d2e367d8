"""Where models come from: a default that needs no hub, a hub id, a local folder, a GGUF file.

    names.py        what a name means, decided by its pattern before anything is opened
    packaged.py     the default models, fetched and converted once
    hub.py          downloads from the hub
    gguf_file.py    GGUF files, converted once
    headers.py      what safetensors files say about themselves, checked before anything is allocated
    config.py       what config.json may say
    checkpoint.py   a folder on disk whose headers and config were checked: `Checkpoint`
    assembly.py     the model without its weights, which must agree with the headers
    mapping.py      stored tensors as memory maps
    loading.py      weights into a model
    sources.py      `resolve`, which puts the above together
    outlines.py     `outline`, the same from headers alone: of a model on the hub no weights are fetched, no GGUF file is converted
    gguf_header.py  what a GGUF file says about itself, in milliseconds

Nothing here unpickles a file or runs code that came with a model.
"""

from qcore.models.assembly import skeleton
from qcore.models.checkpoint import Checkpoint
from qcore.models.headers import TensorInfo
from qcore.models.loading import Loaded, load
from qcore.models.outlines import is_foreign, outline
from qcore.models.sources import defaults, prepare, resolve

__all__ = ["Checkpoint", "Loaded", "TensorInfo", "defaults", "is_foreign", "load", "outline", "prepare", "resolve", "skeleton"]

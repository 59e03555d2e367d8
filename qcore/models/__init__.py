"""Reading checkpoints: what names mean, what files say about themselves, and the model without its weights.

    names.py        what a name means, decided by its pattern before anything is opened
    packaged.py     the default models, fetched and converted once
    hub.py          downloads from the hub
    gguf_file.py    GGUF files, converted once
    headers.py      what safetensors files say about themselves, checked before anything is allocated
    config.py       what config.json may say
    checkpoint.py   a folder on disk whose headers and config were checked: `Checkpoint`
    assembly.py     the model without its weights, which must agree with the headers
    mapping.py      stored tensors as memory maps
    gguf_header.py  what a GGUF file says about itself, in milliseconds

Nothing here unpickles a file or runs code that came with a model.
"""

from qcore.models.assembly import meta_model
from qcore.models.checkpoint import Checkpoint
from qcore.models.headers import TensorInfo

__all__ = ["Checkpoint", "TensorInfo", "meta_model"]

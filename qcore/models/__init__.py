"""Reading checkpoints: model names, validated file headers, and models without weights.

    names.py        the kind of a model name, decided from its pattern
    packaged.py     the default models
    hub.py          downloads from the hub
    headers.py      safetensors headers, validated before any allocation
    config.py       validation of config.json
    checkpoint.py   `Checkpoint`, a folder with validated headers and config
    classes.py      the class of transformers that a config stands for: a causal language model or a wrapper
    shorter.py      a config with some of the layers only
    unread.py       towers, and stored tensors without a place in the model, as sentences
    assembly.py     models without weights, checked against the headers
    mapping.py      stored tensors as memory maps
    stored.py       a weight as another project stored it; places.py its place in a model
    gguf_*.py       GGUF files: header, config, checkpoint, weights with their codes; file.py dequantizes one
    foreign_*.py    folders that other projects quantized: the forms of weights, and a folder's weights

No module here unpickles a file or runs code that comes with a model.
"""

from qcore.models.assembly import meta_model
from qcore.models.checkpoint import Checkpoint
from qcore.models.headers import TensorInfo

__all__ = ["Checkpoint", "TensorInfo", "meta_model"]

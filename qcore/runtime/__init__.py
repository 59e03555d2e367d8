"""A model run as a whole: one native call per step, with its own cache, instead of hundreds of
small operations.

The model stays an ordinary Hugging Face module. `attach` lets its forward (and so `generate` and evaluation)
take the native step wherever that computes the same thing. `Context` reads tokens and returns logits, by one
native call per step where possible.

forward.py       the forward that takes the native step, and when it may
context.py       the tokens that a model has read, and the logits after them
families.py      the architectures whose whole step is native: names of their parts
description.py   what each block of a model computes, in data
blocks.py        the description read from a model; its attention by attentions.py, mixtures by mixtures.py
parts.py         what those readers share
structures.py    the same as the native code declares it
masks.py         whether a mask is one that the native step applies
weights.py       a model as the native step reads it
snapshot.py      whether the model is still the one that was read
native_cache.py  keys and values as the native step reads them
kv_cache.py      keys and values in 8 or 4 bits
past.py          what a model carries from call to call
"""

from qcore.runtime.context import Context
from qcore.runtime.forward import attach, detach, explain, reason_against
from qcore.runtime.native_cache import NativeCache
from qcore.runtime.weights import supports

__all__ = ["Context", "NativeCache", "attach", "detach", "explain", "reason_against", "supports"]

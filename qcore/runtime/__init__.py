"""A Llama-type model run as a whole: one native call a step, with a cache of its own, instead of hundreds of
small operations.

The model stays what it is, an ordinary Hugging Face module. `attach` has its own forward (and so `generate`,
evaluation and measurement) take the native step wherever it computes the same thing; `Decoder` is the same
without transformers in between.
"""

from qcore.runtime.forward import attach, detach, explain, reason_against
from qcore.runtime.native_cache import NativeCache
from qcore.runtime.sequence import Decoder
from qcore.runtime.weights import supports

__all__ = ["Decoder", "NativeCache", "attach", "detach", "explain", "reason_against", "supports"]

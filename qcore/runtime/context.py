"""The tokens that a model has read, and the logits after them: the decode loop of all of qcore.

Generation, `bench`, the playground and the benchmarks all append tokens to a `Context`. Where the native step
computes the same result, one native call makes the logits, and no code of transformers runs in between.
"""

import inspect

import torch
from transformers.cache_utils import Cache

from qcore.base.errors import InputError
from qcore.formats.kv import KVFormat
from qcore.runtime.forward import native_logits
from qcore.runtime.kv_cache import QuantizedKVCache


class Context:
    """Sequences that `model`, any causal language model of transformers, has read.

    Keys and values are kept in the form `kv` (None: as the model keeps them). Raise `InputError` for an
    architecture whose cache cannot be quantized. A model that returns no cache, as XLM and RecurrentGemma do,
    reads all tokens again at each step; `keeps` is then False.
    """

    def __init__(self, model: torch.nn.Module, kv: KVFormat | None = None):
        self.model = model
        self._read: torch.Tensor | None = None  # all tokens, for a model without a cache
        self.keeps, self._quantized = True, kv is not None
        self.cache: Cache | None = None if kv is None else QuantizedKVCache(model.config, kv)
        # compute logits for the last position only, as `generate` does
        takes = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def append(self, ids: torch.Tensor, **options) -> torch.Tensor:
        """Read the tokens `ids` (B, T) and return the logits (B, vocabulary) after the last of them.

        `options` go to the model's forward, such as the attention mask (B, tokens read) and position ids (B,
        T) of padded sequences.
        """
        if self._read is not None:
            self._read = torch.cat((self._read, ids), dim=1)
            return self.model(input_ids=self._read, use_cache=False, **self._options, **options).logits[:, -1]
        found = None if options else native_logits(self.model, ids, self.cache)
        if found is not None:
            logits, self.cache = found
            return logits
        output = self.model(input_ids=ids, cache=self.cache, use_cache=True, **self._options, **options)
        self.cache = getattr(output, "cache", None)
        if self.cache is None:
            self._start_again(ids)
        return output.logits[:, -1]

    def _start_again(self, ids: torch.Tensor) -> None:
        """Go on without a cache: the model returned none after its first tokens `ids`."""
        if self._quantized:
            name = type(self.model).__name__
            raise InputError(f"{name} keeps no cache of keys and values, so none can be quantized.")
        self.keeps, self._read = False, ids

    @property
    def nbytes(self) -> int | None:
        """Return the bytes of keys and values, including reserved room; None for a model without them."""
        return sum(map(_layer_bytes, getattr(self.cache, "layers", ()))) or None


def _layer_bytes(layer) -> int:
    if hasattr(layer, "nbytes"):  # qcore's own layers, whose stored tensors differ from the returned ones
        return layer.nbytes
    parts = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))

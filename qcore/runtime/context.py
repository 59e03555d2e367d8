"""The tokens that a model has read, and the logits after them: the decode loop of all of qcore.

Generation, `bench`, the playground and the benchmarks all append tokens to a `Context`. Where the native step
computes the same result, one native call makes the logits, and no code of transformers runs in between. A
model that carries nothing from call to call (see `past.py`) reads the whole text again.
"""

import inspect
from typing import Any

import torch

from qcore.base.errors import InputError
from qcore.formats.kv import KVFormat
from qcore.runtime.forward import native_logits
from qcore.runtime.kv_cache import quantized_cache
from qcore.runtime.past import held_bytes, past_of


class Context:
    """Sequences that `model`, any causal language model of transformers, has read.

    Keys and values are kept in the form `kv` (None: as the model keeps them). Raise `InputError` for an
    architecture whose cache cannot be quantized. A model that returns no cache, as XLM and RecurrentGemma do,
    reads all tokens again at each step; `keeps` is then False.
    """

    def __init__(self, model: torch.nn.Module, kv: KVFormat | None = None):
        self.model, self.past = model, past_of(model)
        self._argument, self._quantized = self.past.argument, kv is not None
        self.cache: Any = None if kv is None else quantized_cache(model, kv)
        self.length = 0  # tokens read
        self._text: torch.Tensor | None = None  # the tokens themselves, if nothing is carried
        # compute logits for the last position only, as `generate` does
        takes = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def append(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Read the tokens `ids` (B, T) and return the logits (B, vocabulary) after the last of them.

        `mask` (B, tokens read, these included) is 0 on the left padding of a sequence.
        """
        found = None if mask is not None else native_logits(self.model, ids, self.cache)
        if found is not None:
            logits, self.cache = found
        elif self._argument is None:
            logits = self._whole(ids, mask)
        else:
            step = self.past.step if self.length and self.past.step else ids.shape[1]
            for part in ids.split(step, dim=1):
                logits = self._carried(self._argument, part, mask)
                self.length += part.shape[1]
            return logits
        self.length += ids.shape[1]
        return logits

    def _carried(self, argument: str, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        read = self.length + ids.shape[1]
        options: dict[str, Any] = {argument: self.cache}
        if mask is not None:
            options |= _padding(mask[:, :read], ids.shape[1])
        elif self.past.counts:
            options["position_ids"] = torch.arange(self.length, read, device=ids.device)[None]
        output = self.model(input_ids=ids, use_cache=True, **self._options, **options)
        self.cache = getattr(output, argument, None)
        if self.cache is None:
            self._start_again(ids)
        return output.logits[:, -1]

    def _start_again(self, ids: torch.Tensor) -> None:
        """Go on without a cache: the model returned none after its first tokens `ids`."""
        if self._quantized:
            name = type(self.model).__name__
            raise InputError(f"{name} keeps no cache of keys and values, so none can be quantized.")
        self._argument, self._text = None, ids

    def _whole(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        self._text = ids if self._text is None else torch.cat((self._text, ids), dim=1)
        options = {} if mask is None else _padding(mask, mask.shape[1])
        output = self.model(input_ids=self._text, use_cache=False, **self._options, **options)
        return output.logits[:, -1]

    @property
    def keeps(self) -> bool:
        """Return whether the model carries what it has read; otherwise each step reads the whole text."""
        return self._argument is not None

    @property
    def nbytes(self) -> int | None:
        """Return the bytes of keys, values and states, including reserved room; None if nothing is held."""
        return held_bytes(self.cache) or None


def _padding(mask: torch.Tensor, tokens: int) -> dict[str, torch.Tensor]:
    """Return the options for the last `tokens` positions of sequences with the attention `mask`."""
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, -tokens:]}

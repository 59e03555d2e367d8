"""`Decoder`: one sequence through a model, a native call a step, with nothing of transformers in between.

>>> decoder = Decoder(model)                     # doctest: +SKIP
>>> logits = decoder.prefill(prompt_ids)         # (vocabulary,), those after the last token
>>> logits = decoder.step(int(logits.argmax()))
"""

from collections.abc import Sequence

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.runtime.native_cache import NativeLayers
from qcore.runtime.weights import CHUNK, Weights, supports

CAPACITY = 2048  # tokens of cache, unless more are asked for


class Decoder:
    """A model with a cache for `capacity` tokens, in float16 if `half_cache` (half the bytes; tokens may then
    differ).

    `activations` overrides what the layers say, see `kernels.dispatch`. One decoder runs one sequence, in one
    thread at a time; several decoders of one model may run at once. Raises `InputError` if `supports(model)`
    has a reason against it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        capacity: int | None = None,
        half_cache: bool = False,
        activations: str | None = None,
    ):
        if reason := supports(model):
            raise InputError(reason)
        limit = getattr(model.config, "max_position_embeddings", None) or CAPACITY
        self.capacity = min(limit, CAPACITY) if capacity is None else capacity
        if not self.capacity >= 1:
            raise InputError(f"The capacity is {capacity}, but it must be at least 1 token.")
        self._weights, self._layers = Weights(model, activations), NativeLayers.of(model, half_cache)
        self._layers.reserve(1, self.capacity)

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return self._layers.length

    @property
    def cache_bytes(self) -> int:
        """Bytes of the key-value cache."""
        return sum(layer.nbytes for layer in self._layers)

    def prefill(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Append the tokens `ids` (T,), T >= 1, and return the logits (vocabulary,) after the last. Raises
        `InputError` if they do not fit into the cache or the vocabulary."""
        return self._append(self._checked(ids, 0))[0]

    def step(self, token: int) -> torch.Tensor:
        """Append one token and return the logits (vocabulary,) after it."""
        return self.prefill((token,))

    def greedy(self, ids: torch.Tensor | Sequence[int], count: int) -> list[int]:
        """Append `ids` and then `count` tokens, each the most likely one, and return those; the last is not
        appended."""
        ids, written = self._checked(ids, count - 1), []
        for _ in range(count):
            _, best = self._append(ids)
            written.append(best)
            ids = torch.tensor([best])
        return written

    def reset(self, position: int = 0) -> None:
        """Forget everything after the first `position` tokens."""
        if not 0 <= position <= self.position:
            raise InputError(f"The decoder holds {self.position} tokens and cannot go back to {position}.")
        for layer in self._layers:
            layer.crop(position - self.position)

    def _checked(self, ids: torch.Tensor | Sequence[int], more: int) -> torch.Tensor:
        ids = torch.as_tensor(ids, dtype=torch.int64).flatten().contiguous()
        free = self.capacity - self.position
        if not ids.numel():
            raise InputError("The decoder needs at least one token.")
        if ids.numel() + more > free:
            raise InputError(
                f"{ids.numel()} tokens{f' and {more + 1} new ones' if more else ''} do not fit into the {free} free positions."
            )
        if not 0 <= int(ids.min()) <= int(ids.max()) < self._weights.tokens:
            raise InputError(f"A token lies outside the vocabulary of {self._weights.tokens}.")
        return ids

    def _append(self, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        logits = torch.empty(self._weights.vocabulary)
        for part in ids.split(CHUNK):
            best = self._weights.run(part[None], self._layers, logits=logits)
        return logits, best

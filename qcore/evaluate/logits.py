"""The logits of a model for a window, a few positions at a time, so that no (window, vocabulary) matrix is ever held.

A hook in front of the output head keeps the hidden states it is given and lets it see only the last few of them; the head is then
run over the rest in chunks. What the model does to the logits after its head (scaling, soft capping) is read from its config and
checked once against the logits that the model itself returned.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qcore.errors import RunError

CHECKED = 2  # positions whose logits are compared with the model's own
CHUNK = 128  # positions at a time …
CHUNK_ELEMENTS = 1 << 24  # … or fewer, so that a chunk of logits stays below 64 MiB


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its head's output: x · `scale`, then, with a `softcap` c, c · tanh(x / c)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config) -> "LogitTransform":
        """Read it from a transformers config: `logits_scaling` divides (Granite), `logit_scale` multiplies (Cohere),
        `final_logit_softcapping` caps (Gemma)."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
        return cls(float(scale), getattr(text, "final_logit_softcapping", None))

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True)
class Chunk:
    """Positions `start` … `stop` - 1 of a window: float32 `logits` (n, V), and the head's input `hidden` (n, H) where it is known."""

    start: int
    stop: int
    logits: torch.Tensor
    hidden: torch.Tensor | None


class LogitReader:
    """Reads a causal language model's logits chunk by chunk. `head` is None if they can only be had whole from the model."""

    def __init__(self, model: torch.nn.Module, chunk: int | None = None):
        self.model = model
        self.head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        self.transform = LogitTransform.of(model.config)
        self.chunk = chunk
        self._checked = False

    @torch.no_grad()  # not inference_mode: optimum-quanto's int4 tensors fail under it
    def read(self, ids: torch.Tensor, skip: int = 0) -> Iterator[Chunk]:
        """Yield the logits of positions `skip` … n - 1 of the window `ids` (n,), in order.

        Raises `RunError` if the model's logits are NaN or infinite.
        """
        hidden, logits = self._forward(ids.to(device_of(self.model)))
        positions = len(ids)
        step = None
        start = skip
        while start < positions:
            stop = positions if step is None else min(start + step, positions)
            if hidden is None:
                step = step or self.chunk_for(logits.shape[-1])
                stop = min(start + step, positions)
                yield Chunk(start, stop, logits[start:stop].float(), None)
            else:
                step = step or self.chunk_for(logits.shape[-1])
                stop = min(start + step, positions)
                part = hidden[start:stop].clone()  # a fresh, aligned buffer: the product's rounding must not depend on where it lies
                yield Chunk(start, stop, self.transform(self.head(part).float()), part)
            start = stop

    def chunk_for(self, vocabulary: int) -> int:
        """How many positions are read at a time."""
        return self.chunk or max(1, min(CHUNK, CHUNK_ELEMENTS // vocabulary))

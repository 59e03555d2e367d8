"""The logits of a model for a window, a few positions at a time, so that a (window, vocabulary) matrix is
never held.

A hook before the output head records the head's input and passes on only its last few positions; the head
then runs over the rest in chunks. Scaling or soft capping of the logits after the head is read from the
config and checked once against the logits that the model itself returned.

With a `kv` form the window is read a few tokens at a time through a quantized key-value cache. Codes are made
at multiples of this number of tokens, so every position sees exactly the codes that it would see in
token-by-token decoding.

A head whose output at one position depends on the other positions (as torch's per-tensor dynamic quantization
does) sees a chunk here instead of a whole window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qcore.formats.kv import GROUP, KVFormat
from qcore.layers.text_part import output_head
from qcore.runtime.calls import device_of
from qcore.runtime.past import past_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CHECKED = 2  # positions whose logits are compared with the model's own
CHUNK = 128  # positions at a time …
CHUNK_ELEMENTS = 1 << 24  # … or fewer, so that a chunk of logits stays below 64 MiB


@dataclass(frozen=True)
class LogitTransform:
    """The transform of the head's output: x · `scale`, then, with a `softcap` c, c · tanh(x / c)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> LogitTransform:
        """Read the transform from a transformers config: `logits_scaling` divides (Granite), `logit_scale`
        multiplies (Cohere), `final_logit_softcapping` caps (Gemma)."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
        return cls(float(scale), getattr(text, "final_logit_softcapping", None))

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True)
class Chunk:
    """Positions `start` … `stop` - 1 of a window: float32 `logits` (n, V), and the head's input `hidden` (n,
    H) where it is known."""

    start: int
    stop: int
    logits: torch.Tensor
    hidden: torch.Tensor | None


class LogitReader:
    """Reads a causal language model's logits chunk by chunk. `head` is None if the model gives them only as a
    whole."""

    def __init__(self, model: PreTrainedModel, chunk: int | None = None, kv: KVFormat | None = None) -> None:
        self.model, self.kv = model, kv
        self.head: torch.nn.Module | None = (
            output_head(model) if hasattr(model, "get_output_embeddings") else None
        )
        self.transform = LogitTransform.of(model.config)
        self.chunk = chunk
        self._checked = False
        self._step, self._counts = GROUP, False
        if kv is not None:  # before any hook, because a recurrence is tried with a few tokens
            past = past_of(model)
            self._step, self._counts = past.step or GROUP, past.counts

    @torch.no_grad()  # not inference_mode: optimum-quanto's int4 tensors fail under it
    def read(self, ids: torch.Tensor, skip: int = 0) -> Iterator[Chunk]:
        """Yield the logits of positions `skip` … n - 1 of the window `ids` (n,), in order."""
        hidden, logits = self._forward(ids.to(device_of(self.model)))
        step = self.chunk or max(1, min(CHUNK, CHUNK_ELEMENTS // logits.shape[-1]))
        for start in range(skip, len(ids), step):
            stop = min(start + step, len(ids))
            if hidden is None:
                yield Chunk(start, stop, logits[start:stop].float(), None)
            else:
                part = hidden[
                    start:stop
                ].clone()  # a fresh, aligned buffer: rounding must not depend on the address
                yield Chunk(start, stop, self.project(part), part)

    @torch.no_grad()
    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits (n, V) that the model computes from its head's input `hidden` (n, H)."""
        if self.head is None:
            raise ValueError(f"the output head of {type(self.model).__name__} cannot be run by itself")
        return self.transform(self.head(hidden[None])[0].float())

    def _forward(self, ids: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the head's input (n, H) and the logits of the last few positions; or None and all logits, if
        the position of the head in the model is not supported."""
        if self.head is None:
            return None, self._run(ids)
        seen: list[torch.Tensor] = []

        def keep(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(arguments[0])
            return (arguments[0][:, -CHECKED:], *arguments[1:])

        hook = self.head.register_forward_pre_hook(keep)
        try:
            logits = self._run(ids)
        finally:
            hook.remove()
        hidden = (
            torch.cat([part[0] for part in seen]) if len(seen) > 1 else seen[0][0] if seen else logits[:0]
        )
        if not self._checked and not (len(hidden) == len(ids) and self._agrees(hidden, logits[-CHECKED:])):
            self.head = None
            return self._forward(ids)
        self._checked = True
        return hidden, logits

    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of the model for the window `ids`: at all positions, or at those that a hook has
        left."""
        if self.kv is None:
            whole: torch.Tensor = self.model(input_ids=ids[None], use_cache=False).logits[0]
            return whole
        from qcore.runtime.kv_cache import quantized_cache

        cache, start, parts = quantized_cache(self.model, self.kv), 0, []
        for part in ids.split(self._step):
            options = (
                {"position_ids": torch.arange(start, start + len(part), device=ids.device)[None]}
                if self._counts
                else {}
            )
            parts.append(self.model(input_ids=part[None], cache=cache, use_cache=True, **options).logits[0])
            start += len(part)
        return torch.cat(parts)

    def _agrees(self, hidden: torch.Tensor, logits: torch.Tensor) -> bool:
        """Return whether head and transform are all that lies between `hidden` and the model's own `logits`.
        NaN equals NaN."""
        expected, own = logits.float(), self.project(hidden[-CHECKED:])
        return own.shape == expected.shape and close(own, expected, logits.dtype)


def close(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether two results of a product in `dtype` agree up to rounding. NaN equals NaN."""
    tolerance = max(1e-5, 8 * torch.finfo(dtype).eps)
    largest = float(right.abs().nan_to_num(0, posinf=0).max())
    return torch.allclose(left, right, rtol=tolerance, atol=tolerance * largest, equal_nan=True)

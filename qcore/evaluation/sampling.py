"""Choose the next token from a row of logits: greedily, or at random with temperature, top-k and top-p.

Top-p (nucleus) sampling: A. Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
"""

import math
from dataclasses import dataclass

import torch

from qcore.base.errors import InputError, RunError

HOTTEST = 10.0


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave every token in the draw. The same `seed` draws
    the same tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not _is_finite(self.temperature) or not 0 <= self.temperature <= HOTTEST:
            raise InputError(
                f"The temperature is {self.temperature}, but it must be between 0 (greedy) and {HOTTEST:g}."
            )
        if not _is_finite(self.top_p) or not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}, but it must be above 0 and at most 1 (off).")
        if not _is_whole(self.top_k) or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}, but it must be a whole number, 0 (off) or more.")
        if not _is_whole(self.seed) or not 0 <= self.seed < 1 << 63:
            raise InputError(
                f"The seed is {self.seed}, but it must be a whole number between 0 and 2^63 - 1."
            )

    def generator(self) -> torch.Generator:
        """Return a new random generator; use one for every `choose` of a text."""
        return torch.Generator().manual_seed(self.seed)

    def choose(self, logits: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Return the next token (B,) for each row of `logits` (B, V); greedy sampling needs no `generator`.
        Raise `RunError` if a row holds NaN."""
        if logits.isnan().any():
            raise RunError("The model's logits are NaN, so it cannot generate text: this recipe has failed.")
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits.double().cpu()
        probabilities = ((logits - logits.amax(-1, keepdim=True)) / self.temperature).softmax(-1)
        ordered, tokens = probabilities.sort(descending=True, stable=True)
        if self.top_k:
            ordered[:, self.top_k :] = 0
        if self.top_p < 1:  # keep a token while the tokens before it hold less than top_p of the rest
            before = ordered.cumsum(-1) - ordered
            ordered[before >= self.top_p * ordered.sum(-1, keepdim=True)] = 0
        return tokens.gather(1, torch.multinomial(ordered, 1, generator=generator)).squeeze(1)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

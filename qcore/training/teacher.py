"""Targets and losses of training.

    kl      KL(teacher || student), mean over tokens: the whole distribution of the unquantized or larger
            model (Hinton et al., arXiv 1503.02531); with a temperature T both are softened, and the loss is
            multiplied by T², so that gradients keep their size
    next    −log p of the text's next token

A teacher's predictions are needed each time a window is read. The cache holds the inputs of its head, H
numbers per token instead of one per word of the vocabulary; the head runs again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.layers.text_part import output_head
from qcore.quantization.methods.joint import divergence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT_BYTES = 512 << 20  # of hidden states, at most


class Teacher:
    """The predictions of the frozen `model` for windows, identified by their indices."""

    def __init__(self, model: PreTrainedModel):
        self.model = model.eval().requires_grad_(False)
        self._kept: dict[int, torch.Tensor] = {}
        self._bytes = 0
        self._plain: bool | None = None

    @torch.no_grad()
    def logits(self, numbers: list[int], ids: torch.Tensor) -> torch.Tensor:
        """Return logits (B, T, V), of the type that the model computes in, for the windows `ids` (B, T) with
        indices `numbers`."""
        if self._plain is not False and all(number in self._kept for number in numbers):
            return self._head(torch.stack([self._kept[number] for number in numbers]))
        seen: list[torch.Tensor] = []
        hook = self._head.register_forward_pre_hook(
            lambda module, arguments: seen.append(arguments[0].detach())
        )
        try:
            logits = self.model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        if (
            self._plain is None
        ):  # some models scale or cap their logits: nothing is cached, and the model runs each time
            self._plain = len(seen) == 1 and torch.equal(self._head(seen[0]), logits)
        if self._plain:
            for number, state in zip(numbers, seen[0], strict=True):
                if number not in self._kept and self._bytes + state.nbytes <= KEPT_BYTES:
                    self._kept[number] = state.clone()
                    self._bytes += state.nbytes
        return logits

    @property
    def _head(self) -> nn.Module:
        return output_head(self.model)

    def hidden(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Return the hidden states (B, T, H) between the blocks, the embedding's output first."""
        with torch.no_grad():
            return list(self.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states)


def soft_loss(wanted: torch.Tensor, logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return T² · KL(softmax(wanted / T) || softmax(logits / T)), mean over positions, in nats; both (B, T,
    V)."""
    wanted, logits = wanted.flatten(0, -2), logits.flatten(0, -2)
    if temperature == 1.0:
        return divergence(wanted, logits)
    return temperature**2 * divergence(wanted.float() / temperature, logits.float() / temperature)


def next_loss(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the mean −log p of the next tokens, in nats: `logits` (B, T, V) for the windows `ids` (B, T)."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, -2).float(), ids[:, 1:].flatten())

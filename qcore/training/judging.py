"""Validation of a model in training, on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from qcore.training.teacher import Teacher, next_loss, soft_loss


def judge(teacher: Teacher, held_out: torch.Tensor, loss: str) -> Callable[[nn.Module], tuple[float, float]]:
    """Return a function of a model: (loss, perplexity) on the windows `held_out` (windows, T). `loss`: "kl"
    against the teacher, in nats per token, or "next"."""

    @torch.no_grad()
    def measure(model: nn.Module) -> tuple[float, float]:
        divergence = nll = 0.0
        for number, ids in enumerate(held_out.unsqueeze(1)):
            logits = model(input_ids=ids, use_cache=False).logits
            nll += float(next_loss(ids, logits))
            if loss == "kl":
                divergence += float(soft_loss(teacher.logits([-1 - number], ids), logits))
        nll, divergence = nll / len(held_out), divergence / len(held_out)
        return divergence if loss == "kl" else nll, math.exp(min(nll, 700.0))

    return measure

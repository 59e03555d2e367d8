"""Importance of each weight, and the choice of weights to prune.

magnitude    |w|              the smallest of each matrix are pruned (Han et al., arXiv 1506.02626)
wanda        |w| · ‖x‖        ‖x‖: the norm of the weight's input over calibration text; the smallest of each
                              *output* are pruned (arXiv 2306.11695)
2:4          wanda's score    of every four weights along the inputs, the two smallest are pruned, a pattern
                              that sparse tensor cores support
"""

from __future__ import annotations

import torch

METHODS = ("wanda", "magnitude", "2:4")


def keep(weight: torch.Tensor, norm: torch.Tensor | None, method: str, amount: float) -> torch.Tensor:
    """Return a mask of the weights (N, K) that stay, boolean (N, K); `norm` (K,) is that of each input, not
    used by magnitude.

    Exactly round(amount · size) are pruned: of the matrix (magnitude) or of each row (wanda); for 2:4 two of
    every four inputs, and all weights of a shorter last group stay.
    """
    if method == "magnitude":
        return _largest(weight.abs().flatten()[None], amount).view(weight.shape)
    score = weight.abs() if norm is None else weight.abs() * norm
    return two_of_four(score) if method == "2:4" else _largest(score, amount)


def two_of_four(score: torch.Tensor) -> torch.Tensor:
    """Mark the two larger scores of each four along the rows of `score` (N, K), as booleans; a remainder at
    the end of a row stays."""
    fours = score.shape[1] // 4
    kept = torch.ones_like(score, dtype=torch.bool)
    if fours:
        groups = score[:, : 4 * fours].unflatten(1, (fours, 4))
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.topk(2, dim=2).indices, True)
        kept[:, : 4 * fours] = chosen.flatten(1)
    return kept


def _largest(score: torch.Tensor, amount: float) -> torch.Tensor:
    """Mark all but the round(amount · K) smallest of each row of `score` (N, K)."""
    count = round(amount * score.shape[1])
    kept = torch.ones_like(score, dtype=torch.bool)
    if count:
        kept.scatter_(1, score.topk(count, dim=1, largest=False).indices, False)
    return kept

"""How much each weight matters, and which ones go.

magnitude    |w|                  the smallest of each matrix go (Han et al., arXiv 1506.02626, a matrix at a time)
wanda        |w| · ‖x‖            ‖x‖: the norm of the weight's input over calibration text; the smallest of each *output* go (arXiv
2306.11695) 2:4          wanda's score        of every four weights along the inputs, the two smallest go, which sparse tensor cores can use
"""

from __future__ import annotations

import torch

METHODS = ("wanda", "magnitude", "2:4")


def keep(weight: torch.Tensor, norm: torch.Tensor | None, method: str, amount: float) -> torch.Tensor:
    """Which of the weights (N, K) stay, boolean (N, K); `norm` (K,) is that of each input, which magnitude
    does without.

    Exactly round(amount · size) go: of the matrix (magnitude) or of each row (wanda); for 2:4 two of every
    four inputs, and of a last, shorter group all that are left over stay.
    """
    if method == "magnitude":
        return _largest(weight.abs().flatten()[None], amount).view(weight.shape)
    score = weight.abs() if norm is None else weight.abs() * norm
    return two_of_four(score) if method == "2:4" else _largest(score, amount)


def two_of_four(score: torch.Tensor) -> torch.Tensor:
    """The two larger scores of each four along the rows of `score` (N, K), as booleans; what is left over at
    the end of a row stays."""
    fours = score.shape[1] // 4
    kept = torch.ones_like(score, dtype=torch.bool)
    if fours:
        groups = score[:, : 4 * fours].unflatten(1, (fours, 4))
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.topk(2, dim=2).indices, True)
        kept[:, : 4 * fours] = chosen.flatten(1)
    return kept


def _largest(score: torch.Tensor, amount: float) -> torch.Tensor:
    """All but the round(amount · K) smallest of each row of `score` (N, K)."""
    count = round(amount * score.shape[1])
    kept = torch.ones_like(score, dtype=torch.bool)
    if count:
        kept.scatter_(1, score.topk(count, dim=1, largest=False).indices, False)
    return kept

"""Divergence of a quantized model's predictions from the baseline's, per token and over the whole vocabulary.

    KL(base || quantized) = Σ_v p_v · (log p_v - log q_v)        in nats, one number per scored token

Identical models give exactly 0 for every token and a top-1 agreement of exactly 1. KL orders recipes more
steadily than perplexity does, which can fall by chance: S. Dutta et al., "Accuracy is Not All You Need",
2024, which also counts flips.
"""

from dataclasses import dataclass

import torch

from qcore.base.errors import InputError, RunError
from qcore.base.quantile import quantile


@dataclass(frozen=True)
class Divergence:
    """Statistics of KL over the scored tokens, in nats, and of changes to the most likely token.

    A flip is a token where baseline and quantized model disagree on the most likely one: harmful if the
    baseline's was the true next token, beneficial if the quantized model's is, neutral if neither is.
    `window_kl` holds the sum of KL per window, and `window_base_nll` that of the baseline's NLL, so that
    the two models can be compared window by window.
    """

    kl_mean: float
    kl_median: float
    kl_p90: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    harmful_flips: int
    beneficial_flips: int
    neutral_flips: int
    window_kl: list[float]
    window_base_nll: list[float]


class LogProbabilities:
    """A chunk of logits (n, V), normalized: `shifted` = logits - their maximum, `weights` = exp(shifted), and
    the float64 logarithm `log_total` (n, 1) of their sum, so that log p = shifted - log_total. Overwrites
    `logits`."""

    def __init__(self, logits: torch.Tensor):
        self.shifted = logits.sub_(logits.amax(-1, keepdim=True))
        self.weights = self.shifted.exp()
        self.log_total = self.weights.sum(-1, keepdim=True, dtype=torch.float64).log()

    def nll(self, targets: torch.Tensor) -> torch.Tensor:
        """Return -log p of the `targets` (n,), in nats, float64 (n,). Raise `RunError` if a value is not
        finite."""
        nll = (self.log_total - self.shifted.gather(1, targets[:, None])).squeeze(1)
        if not torch.isfinite(nll).all():
            raise RunError(
                f"The model's logits are NaN or infinite for {int((~torch.isfinite(nll)).sum())} of "
                f"{len(nll)} tokens read together, so it "
                "cannot be scored. Its weights or its activations have overflowed; try "
                "another recipe, or fp32."
            )
        return nll

    def top(self) -> torch.Tensor:
        """Return the most likely token at each position (n,), the first of equals."""
        return self.shifted.argmax(-1)


def kl(base: LogProbabilities, other: LogProbabilities) -> torch.Tensor:
    """Return KL(base || other) at each position, in nats, float64 (n,). Raise `RunError` if it is not finite,
    `InputError` if the vocabularies differ."""
    if base.shifted.shape != other.shifted.shape:
        sizes = f"{base.shifted.shape[1]} words and this model's has {other.shifted.shape[1]}"
        raise InputError(f"The baseline's vocabulary has {sizes}, so they cannot be compared.")
    terms = (base.shifted - other.shifted).mul_(base.weights)
    if not torch.isfinite(terms.sum()):
        terms = torch.where(
            base.weights > 0, terms, 0
        )  # a word with probability 0 in the baseline (-inf) adds nothing
    weighted = terms.sum(-1, dtype=torch.float64) / base.log_total.exp().squeeze(1)
    result = (weighted + (other.log_total - base.log_total).squeeze(1)).clamp_min(0)
    if not torch.isfinite(result).all():
        raise RunError(
            "The quantized model rules out tokens that the baseline allows: its divergence "
            "is infinite, and it has failed."
        )
    return result


class DivergenceMeter:
    """Collects chunks by `add` and closes windows; `result` returns the statistics."""

    def __init__(self) -> None:
        self._kl: list[torch.Tensor] = []
        self._window: list[float] = []
        self._window_base: list[float] = []
        self._sum = self._base_sum = 0.0
        self._flips = {"agreed": 0, "harmful": 0, "beneficial": 0, "neutral": 0}

    def add(self, base: LogProbabilities, other: LogProbabilities, targets: torch.Tensor) -> None:
        """Add a chunk of n positions whose true next tokens are `targets` (n,)."""
        divergence = kl(base, other)
        self._kl.append(divergence.cpu())
        self._sum += float(divergence.sum())
        self._base_sum += float(base.nll(targets).sum())
        before, after = base.top(), other.top()
        differs = before != after
        counts = {"harmful": differs & (before == targets), "beneficial": differs & (after == targets)}
        counts["neutral"] = differs & ~(counts["harmful"] | counts["beneficial"])
        for name, mask in (*counts.items(), ("agreed", ~differs)):
            self._flips[name] += int(mask.sum())

    def close_window(self) -> None:
        """End a window: its sums become entries of `window_kl` and `window_base_nll`."""
        self._window.append(self._sum)
        self._window_base.append(self._base_sum)
        self._sum = self._base_sum = 0.0

    def result(self) -> Divergence:
        """Return the statistics over all chunks."""
        values = torch.cat(self._kl).sort().values
        return Divergence(
            kl_mean=float(values.mean()),
            kl_median=quantile(values, 0.5),
            kl_p90=quantile(values, 0.9),
            kl_p99=quantile(values, 0.99),
            kl_max=float(values[-1]),
            top1_agreement=self._flips["agreed"] / len(values),
            harmful_flips=self._flips["harmful"],
            beneficial_flips=self._flips["beneficial"],
            neutral_flips=self._flips["neutral"],
            window_kl=self._window,
            window_base_nll=self._window_base,
        )

"""Is the loss real? Baseline and quantized model are compared window by window over the same text, and the
answer is a sentence.

A window w of n_w tokens has d_w = (its sum of NLL under the quantized model) - (under the baseline). Then

    θ = Σ d_w / Σ n_w                                  the logarithm of the ratio of the perplexities
    s² = m/(m-1) · Σ (d_w - θ n_w)² / (Σ n_w)²         its squared standard error,  m = (Σ n_w)² / Σ n_w²
    θ ± t(97.5 %, m-1) · s                             its 95 % interval; exp of it is that of the ratio

For windows of one length that is the paired t interval; for others it is the ratio estimator (W. G. Cochran,
Sampling Techniques, 1977, chapter 6) with Kish's effective number of windows m in the place of their number,
so that a short last window counts by its tokens. Pairing makes the interval narrow: the difficulty of a
passage affects both models and cancels. Mean KL gets the same interval.

The ratio is compared with a margin, by default 1 %, by two one-sided tests (D. J. Schuirmann, 1987), each at
2.5 %, which is equivalent to locating the 95 % interval: inside [1/(1+margin), 1+margin] is "equivalent",
above it "worse", below it "better". Across an edge is "undecided", with the number of tokens after which the
interval would lie on one side with a probability of 80 %, given the present estimate and spread of the
windows.

Windows are treated as independent draws. They are neighbors in one text, so the interval holds for texts like
this one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qcore.base.errors import InputError
from qcore.evaluation.phrases import change, digits, flips_phrase, percent, span, span_of_change
from qcore.evaluation.statistics import mcnemar, normal_quantile, t_above, t_quantile

MARGIN = 0.01
CONFIDENCE = 0.95
POWER = 0.8
FEWEST = 1.5  # effective windows: below that there is no spread to speak of
MOST_TOKENS = 1e9
METHOD = "paired t over windows, weighted by tokens; two one-sided tests at 2.5 % each; exact McNemar"


@dataclass(frozen=True)
class Interval:
    """An `estimate` and its 95 % interval; `low` and `high` are None if there are too few windows for one."""

    estimate: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Flips:
    """Tokens where the models disagree on the most likely one: `harmful` if the baseline was right,
    `beneficial` if the quantized model is. `p` is McNemar's exact p-value that both kinds are equally
    frequent (tokens taken as independent)."""

    harmful: int
    beneficial: int
    p: float


@dataclass(frozen=True)
class Verdict:
    """`outcome` is "equivalent", "worse", "better" or "undecided". `sentence` combines claim, finding,
    interval and advice for the user.

    claim           the outcome within the margin: "Equivalent within 1 %"
    finding         the measured change: "perplexity is 1.3 % higher than the baseline's"
    interval        its 95 % interval in words; None where there is none
    advice          if undecided, a sentence on how to decide; None otherwise
    ratio           perplexity / the baseline's
    kl              mean KL divergence from the baseline, nats per token; None if not measured
    tost_p          the p-value of equivalence: the larger of the two one-sided tests'; equivalent below 0.025
    tokens_needed   if undecided, total tokens that would probably decide; None if unknown
    """

    outcome: str
    claim: str
    finding: str
    interval: str | None
    advice: str | None
    margin: float
    confidence: float
    ratio: Interval
    kl: Interval | None
    flips: Flips | None
    tost_p: float | None
    tokens_needed: int | None
    tokens: int
    windows: int
    method: str = METHOD

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, with the `sentence`."""
        return {"outcome": self.outcome, "sentence": self.sentence} | asdict(self)

    @property
    def sentence(self) -> str:
        """Return the outcome and the finding behind it in one or two sentences."""
        interval = f" ({self.interval})" if self.interval else ""
        advice = f" {self.advice}" if self.advice else ""
        return f"{self.claim}: {self.finding}{interval}.{advice}"

    @property
    def details(self) -> str:
        """Describe KL and flips in words, as details of the verdict."""
        return "; ".join(details(self.to_dict()))


def judge(
    evaluation: dict[str, Any], baseline: dict[str, Any] | None = None, margin: float = MARGIN
) -> Verdict:
    """Compare `evaluation` (`Evaluation.to_dict()`) with `baseline`, another one over the same windows, or,
    without it, with the reference that `evaluation` was scored against.

    Raise `InputError` if the windows differ, if there is no baseline, or if a number is not finite.
    """
    divergence = evaluation.get("divergence") or {}
    tokens = evaluation["window_tokens"]
    base = divergence.get("window_base_nll")
    if base is None and baseline is not None:
        same = all(baseline.get(key) == evaluation.get(key) for key in ("window", "stride", "window_tokens"))
        if not same:
            raise InputError(
                "The two models were not scored over the same windows, so they cannot be "
                "compared pair by pair."
            )
        base = baseline["window_nll"]
    if base is None:
        raise InputError(
            "There is no baseline to compare with: give one that was scored over the same windows."
        )
    flips = (
        (divergence["harmful_flips"], divergence["beneficial_flips"])
        if "harmful_flips" in divergence
        else None
    )
    return verdict(
        base, evaluation["window_nll"], tokens, kl=divergence.get("window_kl"), flips=flips, margin=margin
    )


def verdict(
    base_nll: Sequence[float],
    nll: Sequence[float],
    tokens: Sequence[int],
    *,
    kl: Sequence[float] | None = None,
    flips: tuple[int, int] | None = None,
    margin: float = MARGIN,
) -> Verdict:
    """Return the verdict from sums per window: NLL (nats) of baseline and quantized model, scored `tokens`,
    and KL.

    `flips` counts harmful and beneficial ones. Raise `InputError` for lists of different lengths, numbers
    that are not finite, or a margin that is not above 0.
    """
    _check(base_nll, nll, tokens, kl, margin)
    mean = _mean([after - before for before, after in zip(base_nll, nll, strict=True)], tokens)
    kl_mean = None if kl is None else _mean(kl, tokens)
    edge, ratio = math.log1p(margin), _interval(mean, _exp)
    counted = None if flips is None else Flips(*flips, mcnemar(*flips))
    same = (
        mean.value == 0
        and mean.error == 0
        and (kl is None or not any(kl))
        and (flips is None or not sum(flips))
    )
    needed, advice, within = None, None, f"within {percent(margin)}"
    finding, interval = change(ratio.estimate), None
    if ratio.low is not None and ratio.high is not None:
        interval = f"95 % interval: {span_of_change(ratio.low, ratio.high)}"
    if same:
        outcome, claim = "equivalent", "Equivalent"
        finding, interval = "every prediction is the baseline's", None
        ratio = Interval(1.0, 1.0, 1.0)
    elif mean.half is None:
        outcome = claim = "undecided"
        finding += ", but one window of text says nothing about the spread between windows"
        advice = f"Score {8 * max(tokens):,} tokens or more."
    elif abs(mean.value) + mean.half < edge:
        outcome, claim = "equivalent", f"Equivalent {within}"
    elif abs(mean.value) - mean.half > edge:
        outcome = "worse" if mean.value > 0 else "better"
        claim = f"{outcome}, by more than {percent(margin)}"
    else:
        outcome, claim, needed = "undecided", f"Undecided whether it is {within}", _needed(mean, edge)
        advice = "The estimate lies so near the margin that no number of tokens decides."
        if needed:
            advice = f"About {needed:,} tokens would decide."
    claim = claim[:1].upper() + claim[1:]
    return Verdict(
        outcome=outcome,
        claim=claim,
        finding=finding,
        interval=interval,
        advice=advice,
        margin=margin,
        confidence=CONFIDENCE,
        ratio=ratio,
        kl=None if kl_mean is None else _interval(kl_mean, floor=0.0),
        flips=counted,
        tost_p=0.0 if same else _tost(mean, edge),
        tokens_needed=needed,
        tokens=int(sum(tokens)),
        windows=len(tokens),
    )


def details(found: dict[str, Any]) -> list[str]:
    """Return KL and flips of a verdict's dictionary in words: "KL 0.0316 nats per token (0.0293 to 0.0339)",
    "80 harmful …"."""
    parts = []
    if found.get("kl"):
        kl = found["kl"]
        known = "" if kl["low"] is None else f" ({span(kl['low'], kl['high'])})"
        parts.append(f"KL {digits(kl['estimate'])} nats per token{known}")
    if found.get("flips"):
        parts.append(flips_phrase(**found["flips"]))
    return parts


@dataclass(frozen=True)
class _Mean:
    """A mean per token, its standard `error`, effective number of `windows`, and tokens; `half` is half of
    its interval."""

    value: float
    error: float
    windows: float
    tokens: int

    @property
    def half(self) -> float | None:
        return (
            None if self.windows < FEWEST else t_quantile(0.5 + CONFIDENCE / 2, self.windows - 1) * self.error
        )


def _mean(sums: Sequence[float], tokens: Sequence[int]) -> _Mean:
    total = sum(tokens)
    value = math.fsum(sums) / total
    effective = total * total / sum(count * count for count in tokens)
    if effective < FEWEST:
        return _Mean(value, 0.0, effective, total)
    spread = math.fsum((each - value * count) ** 2 for each, count in zip(sums, tokens, strict=True))
    return _Mean(value, math.sqrt(effective / (effective - 1) * spread) / total, effective, total)


def _interval(mean: _Mean, link: Callable[[float], float] = float, floor: float = -math.inf) -> Interval:
    if mean.half is None:
        return Interval(link(mean.value), None, None)
    return Interval(link(mean.value), max(floor, link(mean.value - mean.half)), link(mean.value + mean.half))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # two windows that contradict each other have an infinite interval


def _tost(mean: _Mean, edge: float) -> float | None:
    """Return the larger p-value of "at least `edge` above" and "at least `edge` below"."""
    if mean.half is None:
        return None
    nearest = edge - abs(mean.value)
    if mean.error == 0:
        return 0.0 if nearest > 0 else 1.0
    return t_above(nearest / mean.error, mean.windows - 1)


def _needed(mean: _Mean, edge: float) -> int | None:
    """Return the number of tokens at which the interval probably clears the nearer edge, to two digits; None
    beyond `MOST_TOKENS`."""
    gap, spare = abs(edge - abs(mean.value)), normal_quantile(POWER)

    def clears(factor: float) -> bool:
        times = t_quantile(0.5 + CONFIDENCE / 2, mean.windows * factor - 1) + spare
        return times * mean.error / math.sqrt(factor) <= gap

    low = high = 1.0
    while not clears(high):
        low, high = high, 2 * high
        if high * mean.tokens > MOST_TOKENS:
            return None
    for _ in range(8):  # to a quarter of a percent
        middle = (low + high) / 2
        low, high = (low, middle) if clears(middle) else (middle, high)
    needed = high * mean.tokens
    step = 10 ** (math.floor(math.log10(needed)) - 1)
    return int(math.ceil(needed / step) * step)


def _check(
    base_nll: Sequence[float],
    nll: Sequence[float],
    tokens: Sequence[int],
    kl: Sequence[float] | None,
    margin: float,
) -> None:
    lists: list[Sequence[float]] = [base_nll, nll, tokens, *([] if kl is None else [kl])]
    if len({len(each) for each in lists}) != 1 or not tokens:
        raise InputError(
            "A verdict takes one number for each window, but got lists of "
            f"{', '.join(str(len(each)) for each in lists)}."
        )
    if any(value is None or not math.isfinite(value) for each in lists for value in each) or min(tokens) < 1:
        raise InputError(
            "A window's sum is not a finite number, so there is no verdict: that model has failed."
        )
    if not 0 < margin < math.inf:
        raise InputError(f"The margin is {margin!r}, but it must be above 0: 0.01 means within 1 %.")

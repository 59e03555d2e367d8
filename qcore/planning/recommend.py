"""Recommend a recipe: the best that meets the constraints, the constraint that excludes better ones, and the
runner-up.

A candidate is a recipe with a format of the KV cache. Candidates that violate a constraint are excluded.
Unknown figures do not exclude, but are flagged, and candidates with all figures known come first. Losses
within the limit (the KL limit, or `NEGLIGIBLE` without one) count as equal. The order is: loss beyond the
limit, exactness of the cache, decode speed, size. The binding constraint is the one that excludes the best of
the better candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qcore.base.errors import InputError

NEGLIGIBLE = 0.005  # nats per token: about the loss of 8-bit weights
MEMORY, SPEED, LOSS, PERPLEXITY = "memory", "decode speed", "KL divergence", "perplexity"


@dataclass(frozen=True)
class Needs:
    """Constraints: most bytes of memory, least tokens per second, most KL in nats per token, most perplexity
    relative to the baseline (1.05 is 5 % more). None sets no limit. Raise `InputError` for numbers out of
    range."""

    memory: int
    min_tokens_per_second: float | None = None
    max_kl: float | None = None
    max_ratio: float | None = None

    def __post_init__(self):
        for name, value, least in (
            ("min-tokens-per-second", self.min_tokens_per_second, 0),
            ("max-kl", self.max_kl, 0),
            ("max-perplexity-ratio", self.max_ratio, 1),
        ):
            if value is not None and not least <= value < float("inf"):
                raise InputError(f"{name} is {value}, but it must be a number of at least {least}.")


@dataclass(frozen=True)
class Candidate:
    """One choice with its figures. `decode_tok_s`, `kl` and `ratio` are None if unknown. `exactness` ranks
    the cache formats, most exact first."""

    recipe: str
    kv: str
    bytes: int
    decode_tok_s: float | None
    kl: float | None
    ratio: float | None
    exactness: int = 0

    def breaks(self, needs: Needs) -> list[str]:
        """Return the constraints that this choice violates."""
        checks = (
            (MEMORY, self.bytes > needs.memory),
            (SPEED, _below(self.decode_tok_s, needs.min_tokens_per_second)),
            (LOSS, _below(needs.max_kl, self.kl)),
            (PERPLEXITY, _below(needs.max_ratio, self.ratio)),
        )
        return [name for name, broken in checks if broken]

    def unknown(self, needs: Needs) -> list[str]:
        """Return the constraints that cannot be checked for this choice."""
        checks = (
            (SPEED, needs.min_tokens_per_second, self.decode_tok_s),
            (LOSS, needs.max_kl, self.kl),
            (PERPLEXITY, needs.max_ratio, self.ratio),
        )
        return [name for name, need, value in checks if need is not None and value is None]

    def order(self, needs: Needs) -> tuple:
        """Sort key: smaller is better."""
        allowed = NEGLIGIBLE if needs.max_kl is None else needs.max_kl
        loss = math.inf if self.kl is None else max(self.kl, allowed)
        return (bool(self.unknown(needs)), loss, self.exactness, -(self.decode_tok_s or 0.0), self.bytes)


@dataclass(frozen=True)
class Recommendation:
    """`best` and `runner_up` (None if nothing fits), the `binding` constraint (None if nothing better
    exists), and a `sentence`."""

    best: Candidate | None
    runner_up: Candidate | None
    binding: str | None
    sentence: str


def recommend(candidates: Sequence[Candidate], needs: Needs) -> Recommendation:
    """Return the recommendation among `candidates` under the constraints."""
    ranked = sorted(candidates, key=lambda each: each.order(needs))
    good = [each for each in ranked if not each.breaks(needs)]
    if not good:
        return _nothing(candidates, needs)
    best = good[0]
    runner_up = next((each for each in good[1:] if each.recipe != best.recipe), None)
    better = next((each for each in ranked[: ranked.index(best)] if each.breaks(needs)), None)
    binding = better.breaks(needs)[0] if better else None
    said = f"Take {_name(best)}"
    if better and binding:
        said += f": {_advantage(better, best)}, but {_why(better, binding, needs)}."
    else:
        said += _reason(best)
    if lacking := best.unknown(needs):
        said += f" Its {' and '.join(lacking)} is not known; measure it before you rely on it."
    if runner_up is not None:
        said += f" Next after it: {_name(runner_up)}."
    return Recommendation(best, runner_up, binding, said)


def _reason(best: Candidate) -> str:
    if best.kl is None:
        return ", the smallest; its loss is not known."
    speed = "fastest" if best.decode_tok_s else "smallest"
    return f": no recipe that fits loses less, and of those that lose as little it is the {speed}."


def _advantage(better: Candidate, best: Candidate) -> str:
    if better.kl is not None and (best.kl is None or better.kl < best.kl):
        return f"{_name(better)} loses less"
    if better.exactness < best.exactness:
        return f"{_name(better)} keeps a more exact cache"
    faster = (better.decode_tok_s or 0) > (best.decode_tok_s or 0)
    return f"{_name(better)} is {'faster' if faster else 'smaller'}"


def _nothing(candidates: Sequence[Candidate], needs: Needs) -> Recommendation:
    if not candidates:
        return Recommendation(None, None, None, "No recipe was given, so none can be recommended.")
    nearest = min(candidates, key=lambda each: (len(each.breaks(needs)), each.bytes))
    binding = nearest.breaks(needs)[0]
    return Recommendation(
        None,
        None,
        binding,
        f"None of the recipes meets all of it. Nearest is {_name(nearest)}: {_why(nearest, binding, needs)}.",
    )


def _why(candidate: Candidate, binding: str, needs: Needs) -> str:
    if binding == MEMORY:
        return f"it needs {candidate.bytes / 1e9:.2f} GB where {needs.memory / 1e9:.2f} GB are allowed"
    if binding == SPEED:
        wanted = needs.min_tokens_per_second
        return f"it decodes {candidate.decode_tok_s:.3g} tokens per second where {wanted:g} are wanted"
    if binding == LOSS:
        return f"its KL divergence of {candidate.kl:.3g} nats is above {needs.max_kl:g}"
    return (
        f"its perplexity is {candidate.ratio:.3g} times the baseline's where {needs.max_ratio:g} is the most"
    )


def _name(candidate: Candidate) -> str:
    return f"{candidate.recipe} with a {candidate.kv} cache"


def _below(value: float | None, least: float | None) -> bool:
    return value is not None and least is not None and value < least

"""Changes, intervals and p-values in words, for verdicts."""

import math
from collections.abc import Mapping
from typing import Any

LARGE = 2.0  # from this ratio on, "3.1 times" instead of percent


def digits(value: float) -> str:
    """Three significant digits, never as a power of ten above 0.0001: 0.0316, 1.25, 12.3."""
    if value == 0:
        return "0"
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(places, 0), 7)}f}" if abs(value) >= 1e-5 else f"{value:.2g}"


def percent(share: float) -> str:
    """ "1 %" for 0.01, two significant digits: 0.12 %, 1.3 %, 33 %."""
    value = 100 * abs(share)
    if value == 0:
        return "0 %"
    places = max(0, 1 - math.floor(math.log10(value)))
    text = f"{value:.{places}f}" if value >= 0.001 else "less than 0.001"
    return f"{text.rstrip('0').rstrip('.') if '.' in text and value >= 0.001 else text} %"


def change(ratio: float) -> str:
    """ "perplexity is 1.3 % higher than the baseline's", or "perplexity is 3.14 times the baseline's"."""
    return (
        f"perplexity is {times(ratio)} the baseline's"
        if ratio >= LARGE
        else f"perplexity is {_signed(ratio)} than the baseline's"
    )


def span(low: float, high: float) -> str:
    """An interval of plain numbers: "0.0293 to 0.0339"."""
    return f"{digits(low)} to {digits(high)}"


def span_of_change(low: float, high: float) -> str:
    """An interval of ratios: "0.4 % to 2.2 % higher", "0.4 % lower to 0.2 % higher", "2.8 to 3.4 times"."""
    if low >= LARGE:
        return f"{times(low).removesuffix(' times')} to {times(high)}"
    if (low >= 1) == (high >= 1) and high < LARGE:
        near, far = (low, high) if low >= 1 else (high, low)
        return f"{percent(near - 1)} to {_signed(far)}"
    return f"{_signed(low)} to {times(high) if high >= LARGE else _signed(high)}"


def times(ratio: float) -> str:
    """ "3.14 times" or "1,234 times"."""
    return f"{ratio:,.0f} times" if 100 <= ratio < 1e9 else f"{ratio:.3g} times"


def flips_phrase(harmful: int, beneficial: int, p: float) -> str:
    """ "80 harmful and 63 beneficial flips (McNemar p = 0.18)"."""
    return f"{harmful:,} harmful and {beneficial:,} beneficial flips (McNemar p {probability(p)})"


def answers_phrase(choices: Mapping[str, Any]) -> str:
    """A row's "choices" in words: "53 of 64 questions right (83 %, 95 % interval 72 % to 90 %), 51 by length;
    against fp32 2 lost …"."""
    plain, by_length, of = choices["accuracy"], choices["accuracy_by_length"], choices["questions"]
    interval = (
        f"95 % interval {percent(plain['low'])} to {percent(plain['high'])}; guessing "
        f"{percent(choices['chance'])}"
    )
    words = (
        f"{plain['right']:,} of {of:,} questions right ({percent(plain['estimate'])}, "
        f"{interval}), {by_length['right']:,} by length"
    )
    for key, name in (
        ("lost_and_gained", "against the baseline"),
        ("lost_and_gained_by_length", "by length"),
    ):
        if choices.get(key):
            change = choices[key]
            words += (
                f"; {name} {change['lost']:,} lost and {change['gained']:,} gained (McNemar p "
                f"{probability(change['p'])})"
            )
    return words


def probability(p: float) -> str:
    """ "= 0.18" or "< 0.0001"."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def _signed(ratio: float) -> str:
    return f"{percent(ratio - 1)} {'higher' if ratio >= 1 else 'lower'}"

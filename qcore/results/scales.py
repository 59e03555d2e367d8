"""Scales of plots: logarithmic axes, the axis of ratios, bars that are cut off, and the points that no other
beats. Plots of the dashboard and of reports share them.

The axis of ratios is asinh(ln(ratio) / ln(1 + margin)): linear near the baseline, where the margin is, and
logarithmic far from it. A change of 0.1 % and a change of 10 times are both visible in one plot.
"""

import math
from collections.abc import Sequence
from statistics import median

from qcore.evaluation.phrases import percent, times

LONGEST = 3.0  # bars longer than this times the median, and limits this times the largest bar, are cut
OUTCOMES = {"equivalent": "#2e9e5e", "worse": "#d64550", "better": "#3d7fdb", "undecided": "#c07f17"}
TICKS = (
    0.1,
    0.5,
    0.9,
    0.95,
    0.98,
    0.99,
    0.995,
    0.999,
    1.001,
    1.005,
    1.01,
    1.02,
    1.05,
    1.1,
    1.2,
    1.5,
    2,
    3,
    5,
    10,
    100,
    1000,
    1e5,
    1e8,
)
NEAREST = 0.07  # least distance of two ticks, as a share of the axis


def frontier(points: Sequence[tuple[float, float]], smaller_x: bool, smaller_y: bool) -> list[int]:
    """Return the indices of the points that no other beats on both axes, from the best x to the worst."""
    signed = [(x if smaller_x else -x, y if smaller_y else -y, i) for i, (x, y) in enumerate(points)]
    kept, best = [], math.inf
    for _, y, i in sorted(signed):
        if y < best:
            kept.append(i)
            best = y
    return kept


def cut_at(values: Sequence[float | None]) -> float:
    """Return the length at which bars are cut, so that an outlier does not flatten the others."""
    known = [value for value in values if value]
    if len(known) < 3 or max(known) <= 2 * LONGEST * median(known):
        return float("inf")
    return LONGEST * median(known)


def limits_of(values: Sequence[float], log: bool) -> list[float]:
    """Return the range of the axis with room for names; on a logarithmic axis, in powers of ten."""
    known = [math.log10(value) for value in values if value > 0] if log else list(values)
    if not known:
        return [-4.0, 0.0] if log else [0.0, 1.0]
    low, high = min(known), max(known)
    span = (high - low) or (0.5 if log else abs(high) or 1.0)
    if log and any(value <= 0 for value in values):
        low -= 0.25 * span  # room for zero, which a logarithmic axis lacks
    return [low - 0.08 * span, high + 0.12 * span]


def on_axis(value: float, limits: list[float], log: bool) -> float:
    """Return `value`, or on a logarithmic axis a place near its lower end for values that it lacks."""
    return 10 ** (limits[0] + 0.05 * (limits[1] - limits[0])) if log and value <= 0 else value


def fraction(value: float, limits: list[float], log: bool) -> float:
    """Return the place of `value` on the axis: 0 at its lower limit, 1 at its upper one."""
    return ((math.log10(value) if log else value) - limits[0]) / (limits[1] - limits[0])


def ticks(limits: list[float]) -> list[float]:
    """Return a few round numbers in the range: the more decades, the fewer per decade."""
    span = limits[1] - limits[0]
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if span < 0.8 else (1, 2, 5) if span < 3 else (1,)
    decades = range(math.floor(limits[0]), math.ceil(limits[1]) + 1)
    return [
        step * 10.0**decade
        for decade in decades
        for step in steps
        if limits[0] <= math.log10(step) + decade <= limits[1]
    ]


def ratio_place(ratio: float, edge: float) -> float:
    """Return the position of a ratio on the axis. `edge` = ln(1 + margin); the margin ends at ±asinh(1)."""
    return math.asinh(math.log(ratio) / edge)


def ratio_ticks(low: float, high: float, edge: float, margin: float) -> list[float]:
    """Return the baseline, the edges of the margin, and the round ratios that have room."""
    taken = [1.0, 1 + margin, 1 / (1 + margin)]
    gap = NEAREST * (high - low) * 1.36
    for tick in sorted(TICKS, key=lambda tick: abs(math.log(tick))):
        at = ratio_place(tick, edge)
        if low <= at <= high and all(abs(at - ratio_place(other, edge)) >= gap for other in taken):
            taken.append(tick)
    return sorted(taken)


def ratio_name(ratio: float) -> str:
    """Return a ratio as a change: "+1.3 %", "−0.4 %", "3.14×", "±0"."""
    if ratio >= 2:
        return times(ratio).replace(" times", "×")
    if ratio == 1:
        return "±0"
    return f"{'+' if ratio > 1 else '−'}{percent(ratio - 1)}"

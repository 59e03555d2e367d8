"""Allocation of a format per layer: the least total loss within a budget of bytes, or the fewest bytes within
a limit of loss.

Each layer takes one of its options, each with a cost c and a value v (bytes and loss, or the reverse). This
is the multiple-choice knapsack problem:

    minimize  Σ v[layer, choice]     subject to  Σ c[layer, choice] ≤ budget

Lagrangian relaxation: with a price λ ≥ 0 on cost, each layer independently takes the option with the least v
+ λ·c, so  L(λ) = Σ min (v + λ·c) − λ·budget  is a lower bound of the optimum. The best λ is a slope of the
layers' lower convex hulls (Sinha and Zoltners, "The Multiple-Choice Knapsack Problem", 1979), found by taking
upgrades in the order of saved value per cost, which also gives a feasible choice of value U. An option that
exceeds its layer's minimum of v + λ·c by at least U − L(λ) cannot be part of a better choice, and is dropped.
The remaining options, usually of a few layers, are searched completely by dynamic programming over the
undominated (cost, value) sums, so the result is exact. If that takes more than `LARGEST` sums, the best
choice so far is returned with its bound.
"""

from dataclasses import dataclass

import numpy as np

from qcore.base.errors import InputError

LARGEST = 200_000
_GREEDY_PASSES = 4


@dataclass(frozen=True)
class Choice:
    """`options[i]` is the option of layer i; `cost` and `value` are the sums, and `bound` is a proven lower
    bound of the value, equal to it if `exact`."""

    options: tuple[int, ...]
    cost: float
    value: float
    bound: float
    exact: bool


def solve(costs: list[list[float]], values: list[list[float]], budget: float) -> Choice:
    """Return the best choice for layers with the options `costs[i][k]`, `values[i][k]` (multiple-choice
    knapsack, see above). Integer costs are added exactly.

    Raise `InputError` if the cheapest options together exceed the `budget`, or if a number is not finite.
    """
    layers = [_undominated(*pair) for pair in zip(costs, values, strict=True)]
    least = sum(layer.cost[0] for layer in layers)
    if least > budget:
        raise InputError(f"The smallest choice needs {least:,.10g}, and the budget is {budget:,.10g}.")
    price, picks = _relax(layers, budget)
    picks = _fill(layers, picks, budget)
    best = _sum(layers, picks, "value")
    lower = sum(float((layer.value + price * layer.cost).min()) for layer in layers) - price * budget
    picks, best, complete = _search(layers, picks, best, lower, price, budget)
    options = tuple(int(layer.option[pick]) for layer, pick in zip(layers, picks, strict=True))
    bound = best if complete else min(lower, best)
    return Choice(options, _sum(layers, picks, "cost"), best, bound, complete)


def frontier(
    costs: list[list[float]], values: list[list[float]]
) -> list[tuple[float, float, tuple[int, ...]]]:
    """Return (cost, value, options) from the cheapest choice to the best one, each optimal for its own cost:
    the corners of the Lagrangian relaxation."""
    layers = [_undominated(*pair) for pair in zip(costs, values, strict=True)]
    picks = [0] * len(layers)
    points = [(_sum(layers, picks, "cost"), _sum(layers, picks, "value"), _options(layers, picks))]
    for _, layer, pick in _upgrades(layers):
        cost, value, _ = points[-1]
        old = layers[layer]
        step = (old.cost[pick] - old.cost[picks[layer]], old.value[pick] - old.value[picks[layer]])
        picks[layer] = pick
        points.append((cost + float(step[0]), value + float(step[1]), _options(layers, picks)))
    return points


@dataclass(frozen=True)
class _Layer:
    """A layer's undominated options, ascending in cost and descending in value; `option` holds their original
    indices."""

    option: np.ndarray
    cost: np.ndarray
    value: np.ndarray


def _undominated(cost: list[float], value: list[float]) -> _Layer:
    if not len(cost) or not np.isfinite([*cost, *value]).all():
        raise InputError("Each layer needs at least one option, and costs and losses must be finite numbers.")
    order = sorted(range(len(cost)), key=lambda k: (cost[k], value[k]))
    kept: list[int] = []
    for k in order:
        if not kept or value[k] < value[kept[-1]]:
            kept.append(k)
    return _Layer(
        np.array(kept), np.array([cost[k] for k in kept], float), np.array([value[k] for k in kept], float)
    )


def _upgrades(layers: list[_Layer]) -> list[tuple[float, int, int]]:
    """Return (saved value per cost, layer, option) for the corners of every layer's lower convex hull, best
    first."""
    found = []
    for i, layer in enumerate(layers):
        hull = [0]
        for k in range(1, len(layer.cost)):
            while len(hull) > 1 and _slope(layer, hull[-1], k) >= _slope(layer, hull[-2], hull[-1]):
                hull.pop()
            hull.append(k)
        found += [(_slope(layer, a, b), i, b) for a, b in zip(hull[:-1], hull[1:], strict=True)]
    return sorted(found, key=lambda upgrade: (-upgrade[0], upgrade[1], upgrade[2]))


def _slope(layer: _Layer, a: int, b: int) -> float:
    return float((layer.value[a] - layer.value[b]) / (layer.cost[b] - layer.cost[a]))


def _relax(layers: list[_Layer], budget: float) -> tuple[float, list[int]]:
    """Return the best price λ, and the options chosen before the first upgrade that does not fit."""
    picks = [0] * len(layers)
    left = budget - sum(layer.cost[0] for layer in layers)
    for saves, i, k in _upgrades(layers):
        needed = layers[i].cost[k] - layers[i].cost[picks[i]]
        if needed > left:
            return saves, picks
        picks[i], left = k, left - needed
    return 0.0, picks


def _fill(layers: list[_Layer], picks: list[int], budget: float) -> list[int]:
    """Return `picks` with the upgrades that still fit into the budget, best first."""
    picks = list(picks)
    for _ in range(_GREEDY_PASSES):
        left = budget - _sum(layers, picks, "cost")
        tries = []
        for i, layer in enumerate(layers):
            here = picks[i]
            for k in range(here + 1, len(layer.cost)):
                tries.append(
                    (-(layer.value[here] - layer.value[k]) / (layer.cost[k] - layer.cost[here]), i, k)
                )
        moved = False
        for _, i, k in sorted(tries):
            needed = layers[i].cost[k] - layers[i].cost[picks[i]]
            if k > picks[i] and needed <= left:
                picks[i], left, moved = k, left - needed, True
        if not moved:
            break
    return picks


def _search(layers, picks, best, lower, price, budget) -> tuple[list[int], float, bool]:
    """Search every choice that could be better than `picks`. Return (the best one, its value, whether the
    search was complete)."""
    tolerance = 1e-12 * max(1.0, abs(best))
    gap = best - lower
    if gap <= tolerance:
        return picks, best, True
    extras = [layer.value + price * layer.cost for layer in layers]
    extras = [extra - extra.min() for extra in extras]
    open_ = [[k for k in range(len(extra)) if extra[k] < gap + tolerance] for extra in extras]
    base = [int(extra.argmin()) for extra in extras]
    order = sorted(
        (i for i in range(len(layers)) if len(open_[i]) > 1), key=lambda i: sorted(extras[i][open_[i]])[1]
    )
    fixed = [i for i in range(len(layers)) if len(open_[i]) == 1]
    cost = np.array([sum(float(layers[i].cost[open_[i][0]]) for i in fixed)])
    value = np.array([sum(float(layers[i].value[open_[i][0]]) for i in fixed)])
    extra = np.array([sum(float(extras[i][open_[i][0]]) for i in fixed)])
    room = sum(float(min(layers[i].cost[k] for k in open_[i])) for i in order)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for i in order:
        room -= float(min(layers[i].cost[k] for k in open_[i]))
        options = np.array(open_[i])
        new_cost = (cost[:, None] + layers[i].cost[options]).ravel()
        new_value = (value[:, None] + layers[i].value[options]).ravel()
        new_extra = (extra[:, None] + extras[i][options]).ravel()
        kept = np.flatnonzero((new_cost + room <= budget) & (new_extra < gap + tolerance))
        kept = kept[np.lexsort((new_value[kept], new_cost[kept]))]
        before = (
            np.concatenate(([np.inf], np.minimum.accumulate(new_value[kept])[:-1]))
            if len(kept)
            else np.empty(0)
        )
        kept = kept[new_value[kept] < before]  # a dearer sum must be better
        if len(kept) > LARGEST:
            return picks, best, False
        trail.append((kept // len(options), options[kept % len(options)]))
        cost, value, extra = new_cost[kept], new_value[kept], new_extra[kept]
        if not len(kept):
            return picks, best, True
    if not order or not len(value) or float(value.min()) >= best:
        return picks, best, True
    state = int(value.argmin())
    found = list(base)
    for i in fixed:
        found[i] = open_[i][0]
    for i, (parent, option) in zip(reversed(order), reversed(trail), strict=True):
        found[i], state = int(option[state]), int(parent[state])
    return found, _sum(layers, found, "value"), True


def _sum(layers: list[_Layer], picks: list[int], what: str) -> float:
    return float(sum(getattr(layer, what)[pick] for layer, pick in zip(layers, picks, strict=True)))


def _options(layers: list[_Layer], picks: list[int]) -> tuple[int, ...]:
    return tuple(int(layer.option[pick]) for layer, pick in zip(layers, picks, strict=True))

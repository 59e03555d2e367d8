"""The solver against every possible choice, on instances small enough to try them all."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcore.base.errors import InputError
from qcore.quantization.sensitivity import allocation
from qcore.quantization.sensitivity.allocation import frontier, solve

layer = st.lists(st.tuples(st.integers(0, 30), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=4)
instances = st.lists(layer, min_size=1, max_size=6)


def parts(instance):
    return [[cost for cost, _ in layer] for layer in instance], [
        [value for _, value in layer] for layer in instance
    ]


def every_choice(costs, values):
    for picks in product(*(range(len(layer)) for layer in costs)):
        yield (
            sum(c[k] for c, k in zip(costs, picks, strict=True)),
            sum(v[k] for v, k in zip(values, picks, strict=True)),
        )


@given(instances, st.integers(0, 120))
def test_it_is_the_best_of_all_choices(instance, budget):
    costs, values = parts(instance)
    allowed = [value for cost, value in every_choice(costs, values) if cost <= budget]
    if not allowed:
        with pytest.raises(InputError, match="The smallest choice needs"):
            solve(costs, values, budget)
        return
    found = solve(costs, values, budget)
    assert found.exact and found.bound == found.value
    assert found.value == pytest.approx(min(allowed), abs=1e-9)
    assert found.cost == sum(c[k] for c, k in zip(costs, found.options, strict=True)) <= budget
    assert found.value == pytest.approx(sum(v[k] for v, k in zip(values, found.options, strict=True)))


@given(instances)
def test_no_choice_lies_below_the_frontier(instance):
    costs, values = parts(instance)
    points = frontier(costs, values)
    everything = list(every_choice(costs, values))
    for cost, value, options in points:
        assert cost == pytest.approx(sum(c[k] for c, k in zip(costs, options, strict=True)))
        assert value == pytest.approx(sum(v[k] for v, k in zip(values, options, strict=True)), abs=1e-9)
        assert value <= min(other for spent, other in everything if spent <= cost) + 1e-9
    assert points[0][0] == min(cost for cost, _ in everything)
    assert points[-1][1] == pytest.approx(min(value for _, value in everything), abs=1e-9)


def test_two_hundred_layers_of_a_model_are_solved_exactly():
    generator = __import__("random").Random(0)
    costs, values = [], []
    for _ in range(210):
        size, weight = generator.choice((110592, 331776, 884736)), generator.lognormvariate(-7, 1.5)
        costs.append([int(size * bits / 8) for bits in (3.297, 4.156, 4.3125, 4.625, 8.03)])
        values.append([weight * 4.0 ** -(bits - 3) for bits in (3, 4, 4.1, 4.3, 8)])
    budget = int(sum(layer[0] for layer in costs) * 4.25 / 3.297)
    found = solve(costs, values, budget)
    assert found.exact and found.cost <= budget
    slack = max(layer[-1] for layer in costs)
    assert found.cost > budget - slack, "the budget is spent"


def test_a_search_that_grows_too_large_says_how_near_it_is(monkeypatch):
    monkeypatch.setattr(allocation, "LARGEST", 1)
    costs = [[0, 3 + i, 7 + 2 * i] for i in range(6)]
    values = [[10.0, 6.1 - 0.3 * i, 1.0 + 0.7 * i] for i in range(6)]
    found = solve(costs, values, 31)
    best = min(value for cost, value in every_choice(costs, values) if cost <= 31)
    assert not found.exact and found.bound <= best <= found.value


@pytest.mark.parametrize(
    "values", [[[float("nan")]], [[float("inf")]], [[]]], ids=["nan", "infinite", "none"]
)
def test_numbers_must_be_finite(values):
    with pytest.raises(InputError, match="finite"):
        solve([[1] * len(values[0])], values, 3)

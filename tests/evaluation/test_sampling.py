"""Sampling against probabilities worked out by hand, and the bounds of its numbers."""

import math

import pytest
import torch

from qcore.base.errors import InputError, RunError
from qcore.evaluation.sampling import Sampling

LOGITS = torch.tensor([[math.log(p) for p in (0.1, 0.5, 0.15, 0.25)]])


def draw(sampling: Sampling, count: int = 400) -> list[int]:
    generator = sampling.generator()
    return [int(sampling.choose(LOGITS, generator)) for _ in range(count)]


def test_greedy_takes_the_first_of_the_largest():
    assert Sampling().choose(torch.tensor([[1.0, 3.0, 3.0], [9.0, 0.0, 0.0]]), None).tolist() == [1, 0]


def test_a_low_temperature_is_greedy_and_does_not_overflow():
    assert set(draw(Sampling(temperature=1e-300))) == {1}


def test_the_same_seed_draws_the_same():
    assert draw(Sampling(1.0, seed=3)) == draw(Sampling(1.0, seed=3)) != draw(Sampling(1.0, seed=4))


def test_frequencies_follow_the_temperature():
    counts = torch.bincount(torch.tensor(draw(Sampling(temperature=1.0), 4000)), minlength=4) / 4000
    assert counts.tolist() == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.03)
    flat = torch.bincount(torch.tensor(draw(Sampling(temperature=2.0), 4000)), minlength=4) / 4000
    roots = [math.sqrt(p) for p in (0.1, 0.5, 0.15, 0.25)]
    assert flat.tolist() == pytest.approx([root / sum(roots) for root in roots], abs=0.03)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_p": 0.01}, {1}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.51}, {1, 3}),
        ({"top_p": 0.8}, {1, 3, 2}),
        ({"top_k": 2, "top_p": 0.66}, {1}),  # of the two kept, the first has two thirds
        ({"top_k": 9}, {0, 1, 2, 3}),
    ],
    ids=str,
)
def test_top_k_and_top_p_keep_what_they_should(options, expected):
    assert set(draw(Sampling(temperature=1.0, **options))) == expected


@pytest.mark.row("15")
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": 11}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 63}, "seed"),
        ({"seed": None}, "seed"),
    ],
    ids=str,
)
def test_numbers_out_of_range(options, word):
    with pytest.raises(InputError, match=word):
        Sampling(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_choose_nothing(temperature):
    with pytest.raises(RunError, match="NaN"):
        Sampling(temperature).choose(torch.tensor([[0.0, math.nan]]), torch.Generator())

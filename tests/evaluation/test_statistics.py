"""Distributions against their closed forms, published tables and sums of exact fractions."""

import math
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcore.evaluation.statistics import beta_share, mcnemar, normal_quantile, t_above, t_quantile, wilson

CLOSED = {  # P(T > t) of Student's t where it is elementary
    1: lambda t: 0.5 - math.atan(t) / math.pi,
    2: lambda t: 0.5 - t / (2 * math.sqrt(2 + t * t)),
    3: lambda t: 0.5 - (math.atan(t / math.sqrt(3)) + t / math.sqrt(3) / (1 + t * t / 3)) / math.pi,
    4: lambda t: 0.5 - 3 / 8 * (t / math.sqrt(1 + t * t / 4)) * (1 - t * t / (12 * (1 + t * t / 4))),
}


@pytest.mark.parametrize("df", CLOSED)
@given(t=st.floats(-40, 40))
def test_t_where_it_is_elementary(df, t):
    assert t_above(t, df) == pytest.approx(CLOSED[df](t), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 7, 2.36462),
        (0.975, 30, 2.04227),
        (0.95, 10, 1.81246),
        (0.995, 5, 4.03214),
        (0.975, 1000, 1.96234),
        (0.975, 1e7, 1.95996),
    ],
)
def test_t_as_in_the_tables(p, df, t):
    assert t_quantile(p, df) == pytest.approx(t, abs=6e-6 * t)
    assert t_quantile(1 - p, df) == -t_quantile(p, df)


@given(p=st.floats(0.501, 0.9999), df=st.floats(0.5, 500))
def test_the_quantile_undoes_the_probability(p, df):
    assert t_above(t_quantile(p, df), df) == pytest.approx(1 - p, rel=1e-8)


@given(a=st.integers(1, 30), b=st.integers(1, 30), x=st.fractions(0, 1, max_denominator=50))
def test_beta_of_whole_numbers_is_a_sum_of_fractions(a, b, x):
    """I_x(a, b) is the chance of at least a heads in a + b - 1 throws."""
    throws = a + b - 1
    exact = sum(comb(throws, k) * x**k * (1 - x) ** (throws - k) for k in range(a, throws + 1))
    assert beta_share(a, b, float(x)) == pytest.approx(float(exact), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(0, 0, 1), (1, 0, 1), (5, 5, 1), (5, 0, 2 / 32), (8, 1, 20 / 512), (2, 10, 158 / 4096)],
)
def test_mcnemar_by_hand(lost, gained, p):
    assert mcnemar(lost, gained) == pytest.approx(p, rel=1e-12) and mcnemar(gained, lost) == mcnemar(
        lost, gained
    )


@given(lost=st.integers(0, 60), gained=st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(lost, gained):
    changed, fewer = lost + gained, min(lost, gained)
    exact = min(Fraction(1), 2 * sum(Fraction(comb(changed, k), 2**changed) for k in range(fewer + 1)))
    assert mcnemar(lost, gained) == pytest.approx(float(exact), rel=1e-10)


def test_mcnemar_of_many_is_nearly_normal():
    """A million flips: no sum, no overflow."""
    z = 3000 / 1000
    assert mcnemar(501_500, 498_500) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 10, 0.23659, 0.76341), (81, 263, 0.25529, 0.36620)],
)  # the last one is the example of R. G. Newcombe, Statistics in Medicine 17, 1998
def test_wilson(hits, of, low, high):
    assert wilson(hits, of) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_are_where_the_share_lies_at_the_edge_of_its_own_spread():
    z = normal_quantile(0.975)
    for edge in wilson(37, 60):
        assert abs(37 / 60 - edge) == pytest.approx(z * math.sqrt(edge * (1 - edge) / 60), rel=1e-9)

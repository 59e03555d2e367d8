"""The few distributions that verdicts need, from one function: the regularized incomplete beta function
I_x(a, b).

    Student's t    P(T > t)  = I_x(ν/2, 1/2) / 2     with x = ν / (ν + t²), t ≥ 0
    binomial       P(X ≤ k)  = I_(1-p)(n-k, k+1)     exact for any n, without a sum over n terms

I is the continued fraction 8.17.22 of the NIST Digital Library of Mathematical Functions, to about 13 digits.
qcore would use nothing else of scipy, so it does not depend on scipy.
"""

import math
from functools import lru_cache
from statistics import NormalDist

_TINY, _ENOUGH, _MOST = 1e-300, 1e-14, 200_000


def beta_share(a: float, b: float, x: float) -> float:
    """Return I_x(a, b) for a, b > 0 and 0 ≤ x ≤ 1."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges quickly on the other side
        return 1 - beta_share(b, a, 1 - x)
    front = (
        math.exp(
            a * math.log(x) + b * math.log1p(-x) - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
        )
        / a
    )
    return front / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """Evaluate 1 + d₁/(1 + d₂/(1 + …)) from the front (W. J. Lentz, 1976)."""
    value = ratio = 1.0
    reciprocal = 0.0
    for step in range(1, _MOST):
        m = step // 2
        top = a + 2 * m
        d = -(a + m) * (a + b + m) / (top + 1) if step % 2 else m * (b - m) / (top - 1)
        d *= x / top
        reciprocal = 1 / (1 + d * reciprocal or _TINY)
        ratio = 1 + d / ratio or _TINY
        change = reciprocal * ratio
        value *= change
        if abs(change - 1) < _ENOUGH:
            return value
    raise ArithmeticError(f"the continued fraction of I_{x}({a}, {b}) does not converge")


def t_above(t: float, df: float) -> float:
    """Return P(T > t) for Student's t with `df` degrees of freedom, not necessarily an integer."""
    if t < 0:
        return 1 - t_above(-t, df)
    square = t * t
    if square < df:  # where df / (df + t²) would round to 1, t² / (df + t²) does not round to 0
        return 0.5 - beta_share(0.5, df / 2, square / (df + square)) / 2
    return beta_share(df / 2, 0.5, df / (df + square)) / 2


@lru_cache(4096)
def t_quantile(p: float, df: float) -> float:
    """Return the t with P(T ≤ t) = p, for 0 < p < 1."""
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_above(high, df) > 1 - p:
        low, high = high, 2 * high
    t = (low + high) / 2
    for _ in range(60):  # Newton's steps; bisection where a step would leave the bracket
        over = t_above(t, df) - (1 - p)
        low, high = (t, high) if over > 0 else (low, t)
        step = over / math.exp(_log_density(t, df))
        last, t = t, t + step if low < t + step < high else (low + high) / 2
        if abs(t - last) <= 1e-14 * t:
            break
    return t


def _log_density(t: float, df: float) -> float:
    """Return the logarithm of Student's density."""
    scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(df * math.pi) / 2
    return scale - (df + 1) / 2 * math.log1p(t * t / df)


def normal_quantile(p: float) -> float:
    """Return the z with Φ(z) = p."""
    return NormalDist().inv_cdf(p)


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided exact p-value of McNemar's test: the probability of a difference as large as that
    of `lost` and `gained` if both were equally likely.

    Q. McNemar, Psychometrika 12, 1947; exact as a binomial test on the changed pairs, so also valid for small
    counts.
    """
    changed, fewer = lost + gained, min(lost, gained)
    if changed == 0 or 2 * fewer == changed:
        return 1.0
    return min(1.0, 2 * beta_share(changed - fewer, fewer + 1, 0.5))


def wilson(hits: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval for the share `hits` / `of`, whose coverage also holds for small counts and
    shares near 0 and 1 (E. B. Wilson, 1927)."""
    z = normal_quantile(0.5 + confidence / 2)
    share, extra = hits / of, z * z / of
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / of + extra / (4 * of)) / (1 + extra)
    return max(0.0, centre - half) if hits else 0.0, min(1.0, centre + half) if hits < of else 1.0

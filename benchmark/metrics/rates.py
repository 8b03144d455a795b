"""Proportions: intervals, paired tests, correction for many tests."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

Z95 = 1.959963984540054  # the normal's 97.5% quantile


class Interval(NamedTuple):
    """A value between its 95% limits."""

    value: float
    lo: float
    hi: float


def wilson(successes: int, n: int) -> Interval:
    """Return the proportion successes / n with Wilson's 95% score interval.

    Raises ValueError unless 0 <= successes <= n and n > 0. Source: Wilson 1927, JASA 22.

    >>> wilson(0, 10).hi
    0.2775...
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    p, z2 = successes / n, Z95 * Z95
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # The limits are 0 and 1 exactly at the ends; rounding must not push the value outside.
    return Interval(p, 0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half)


def clopper_pearson(successes: int, n: int) -> Interval:
    """Return the proportion successes / n with Clopper and Pearson's exact 95% interval.

    It never covers the truth less often than it says, which makes it the widest: for rates near 0 that a
    claim rests on. Raises ValueError unless 0 <= successes <= n and n > 0. Source: Clopper & Pearson 1934,
    Biometrika 26.

    >>> clopper_pearson(0, 1500).hi
    0.00245...
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    lo = 0.0 if successes == 0 else float(beta.ppf(0.025, successes, n - successes + 1))
    hi = 1.0 if successes == n else float(beta.ppf(0.975, successes + 1, n - successes))
    return Interval(successes / n, lo, hi)


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the two-sided p-value of McNemar's exact test that a and b (n,) succeed equally often.

    Only examples on which they differ count. Source: McNemar 1947; the exact binomial form of Conover 1999,
    Practical Nonparametric Statistics. Raises ValueError where the shapes differ.

    >>> mcnemar(np.array([True] * 5 + [False]), np.array([False] * 5 + [False]))
    0.0625
    """
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"need two vectors of one length, got {a.shape} and {b.shape}")
    return float(mcnemar_counts(np.array([(a & ~b).sum()]), np.array([(b & ~a).sum()]))[0])


def mcnemar_counts(only_a: NDArray[np.int64], only_b: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the p-values (n,) of McNemar's exact test, given how often either one alone succeeds, both (n,).

    >>> mcnemar_counts(np.array([5, 0]), np.array([0, 0]))
    array([0.0625, 1.    ])
    """
    return np.asarray(np.minimum(1.0, 2 * binom.cdf(np.minimum(only_a, only_b), only_a + only_b, 0.5)))


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the p-values (n,) adjusted for n tests, step-down. Source: Holm 1979, Scand. J. Stat. 6.

    >>> holm(np.array([0.01, 0.04, 0.03]))
    array([0.03, 0.06, 0.06])
    """
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted

"""Two systems on the same examples: the difference of their means, with an interval."""

import numpy as np
from numba import njit

from firstline.benchmark.metrics.checks import Floats, floats, same_shape
from firstline.benchmark.metrics.rates import Interval
from firstline.benchmark.metrics.resampling import percentiles, pick, stream


@njit(cache=True)
def _means(values: Floats, resamples: int, key: np.uint64) -> Floats:
    """Means of resamples of values, which lie around 0."""
    n = values.size
    result = np.empty(resamples)
    for r in range(resamples):
        total = 0.0
        for i in range(n):
            total += values[pick(key, r * n + i, n)]
        result[r] = total / n
    return result


def mean_difference(a: Floats, b: Floats, rng: np.random.Generator, resamples: int = 1000) -> Interval:
    """Return mean(a) - mean(b) with its 95% percentile bootstrap interval; above 0, a has more of it.

    a and b are (n,), one value of either system per example, in any unit, which is the result's; outcomes count as
    0 and 1. Examples are drawn in pairs, so what makes an example hard for both cancels. An interval without 0
    tells the systems apart. Raises ValueError for lengths that differ and for values that aren't finite.
    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    >>> always, never = np.ones(4), np.zeros(4)
    >>> mean_difference(always, never, np.random.default_rng(0))
    Interval(value=1.0, lo=1.0, hi=1.0)
    """
    same_shape("a", a, "b", b)
    difference = floats("values of a", a, "n") - floats("values of b", b, "n")
    # Twice: the mean of values with a large offset is itself rounded, and the second mean is what was lost.
    rough = float(difference.mean())
    centred = difference - rough
    rest = float(centred.mean())
    centred -= rest
    return percentiles(rough + rest, rough + rest + _means(centred, resamples, stream(rng)))

"""How long something takes where not all runs get there: times of which some are censored."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Bools, Floats, floats


@njit(cache=True)
def _restricted_mean(times: Floats, reached: Bools, horizon: float) -> float:
    """The area under Kaplan and Meier's curve up to horizon; times are sorted."""
    n = times.size
    area, open_share, since, i = 0.0, 1.0, 0.0, 0
    while i < n and times[i] < horizon:
        at, ends, first = times[i], 0, i
        area += open_share * (at - since)
        while i < n and times[i] == at:
            ends += reached[i]
            i += 1
        open_share *= 1 - ends / (n - first)
        since = at
    return float(area + open_share * (horizon - since))


def restricted_mean(times: NDArray[Any], reached: Bools, *, horizon: float) -> float:
    """Return the mean time until something happens, where times beyond horizon count as horizon; lower is better.

    times is (n,), at least 0, in any unit; reached (n,) says whether it happened then, or the run was stopped then
    without it. Runs that were stopped early count for as long as they lasted; behind the last of all the curve stays
    where it is. Raises ValueError for other shapes, negative times and a horizon that is not above 0.
    Sources: Kaplan & Meier 1958, JASA 53; Irwin 1949, Journal of Hygiene 47 (the mean restricted to a horizon).

    >>> restricted_mean(np.array([1.0, 3.0]), np.array([True, False]), horizon=5.0)
    3.0
    """
    values = floats("times", times, "n")
    if reached.shape != values.shape or reached.dtype != np.bool_:
        raise ValueError(
            f"reached must be {values.shape} of True and False, got {reached.dtype} {reached.shape}"
        )
    if values.min() < 0 or not 0 < horizon < np.inf:
        raise ValueError(f"need times of at least 0 and a horizon above 0, got {values.min()} and {horizon}")
    order = np.argsort(values, kind="stable")
    return float(_restricted_mean(values[order], reached[order], float(horizon)))

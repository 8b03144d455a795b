"""From counts and values to the metrics of a record."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from firstline.benchmark.core.record import Metric
from firstline.benchmark.metrics.rates import Interval, wilson

Better = Literal["higher", "lower", "neither"]


def share(hits: NDArray[np.bool_], better: Better) -> Metric:
    """Return the share of hits (n,) with Wilson's interval. Raises ValueError where n is 0."""
    found = wilson(int(hits.sum()), len(hits))
    return Metric(
        value=found.value, lo=found.lo, hi=found.hi, n=len(hits), method="wilson", unit="share", better=better
    )


def estimate(found: Interval, n: int, better: Better) -> Metric:
    """Return a share whose interval was bootstrapped."""
    return Metric(
        value=found.value, lo=found.lo, hi=found.hi, n=n, method="bootstrap", unit="share", better=better
    )


def plain(value: float, n: int, unit: str, better: Better = "neither") -> Metric:
    """Return a number without an interval."""
    return Metric(value=float(value), n=n, method="", unit=unit, better=better)

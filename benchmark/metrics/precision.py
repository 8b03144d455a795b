"""How clean the top of a ranking is: average precision."""

from numba import njit

from firstline.benchmark.metrics.checks import Bools, Floats, Ints
from firstline.benchmark.metrics.ranking import ranked


@njit(cache=True)
def _average_precision(positive: Ints, negative: Ints) -> float:
    """The mean, over positives, of the precision at the threshold that calls each of them."""
    hits, called, total = 0, 0, 0.0
    for i in range(positive.size - 1, -1, -1):
        hits += positive[i]
        called += positive[i] + negative[i]
        total += positive[i] * (hits / called)
    return float(total / hits)


def average_precision(scores: Floats, positive: Bools) -> float:
    """Return the mean over positives of the precision where each of them is called; higher is better.

    scores is (n,), without NaN, higher meaning positive; positive (n,), some but not all. The result is a share in
    (0, 1]; scores that say nothing give about the share of positives. Equal scores are one threshold, and nothing
    is interpolated. Source: Davis & Goadrich 2006, ICML; the step-wise sum of scikit-learn.

    >>> import numpy as np
    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    0.8333333333333333
    """
    table = ranked(scores, positive)
    return float(_average_precision(table.positive, table.negative))

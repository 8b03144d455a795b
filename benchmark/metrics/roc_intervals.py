"""AUC and TPR at a low FPR with bootstrap intervals, of one ranking and of the difference of two.

Examples are resampled within each class. A resample is how often each example was drawn, in the order of the
scores, so that nothing is sorted again.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Bools, Floats, Ints
from firstline.benchmark.metrics.ranking import check
from firstline.benchmark.metrics.rates import Interval
from firstline.benchmark.metrics.resampling import percentiles, pick, stream
from firstline.benchmark.metrics.roc import auc, is_rate, tpr_at_fpr

Counts = NDArray[np.int32]  # narrow, since draws jump about in memory


class Order(NamedTuple):
    """Positives (p,) and negatives (q,) in rising order of scores, and where the ones lie among the others.

    below (p,) is how many negatives score lower than each positive, upto (p,) lower or the same.
    """

    positive: Ints
    negative: Ints
    below: Ints
    upto: Ints


@njit(cache=True)
def _auc(up: Counts, down: Counts, below: Ints, upto: Ints, room: Ints) -> float:
    """AUC of a resample, in whole numbers up to the division; room (q + 1,) is written over."""
    room[0] = 0
    for j in range(down.size):
        room[j + 1] = room[j] + down[j]
    twice = 0
    for i in range(up.size):
        twice += up[i] * (room[below[i]] + room[upto[i]])
    return float(0.5 * twice / (float(up.size) * down.size))


@njit(cache=True)
def _tpr_at(up: Counts, down: Counts, below: Ints, fpr: float) -> float:
    """The highest TPR of a threshold whose FPR is at most fpr, in a resample."""
    allowed = fpr * down.size * (1 + 1e-12)
    alarms, j = 0, down.size
    while j > 0:
        alarms += down[j - 1]
        if alarms > allowed:
            break
        j -= 1
    hits, i = 0, up.size
    while i > 0 and below[i - 1] >= j:  # above the negative that would be one too many
        hits += up[i - 1]
        i -= 1
    return float(hits / up.size)


@njit(cache=True)
def _draw(counts: Counts, key: np.uint64, start: int) -> None:
    counts[:] = 0
    for i in range(counts.size):
        counts[pick(key, start + i, counts.size)] += 1


@njit(cache=True)
def _bootstrap(below: Ints, upto: Ints, q: int, fpr: float, resamples: int, key: np.uint64) -> Floats:
    """Statistics of resamples; fpr < 0 asks for the AUC."""
    p = below.size
    result = np.empty(resamples)
    up, down, room = np.empty(p, np.int32), np.empty(q, np.int32), np.empty(q + 1, np.int64)
    for r in range(resamples):
        _draw(up, key, r * (p + q))
        _draw(down, key, r * (p + q) + p)
        result[r] = _auc(up, down, below, upto, room) if fpr < 0 else _tpr_at(up, down, below, fpr)
    return result


@njit(cache=True)
def _paired(a: Order, b: Order, fpr: float, resamples: int, key: np.uint64) -> Floats:
    """What the statistic of order a is above that of b in resamples of the examples that both score."""
    p, q = a.positive.size, a.negative.size
    result = np.empty(resamples)
    drawn, other = np.empty(p, np.int32), np.empty(q, np.int32)
    up, down, room = np.empty(p, np.int32), np.empty(q, np.int32), np.empty(q + 1, np.int64)
    for r in range(resamples):
        _draw(drawn, key, r * (p + q))
        _draw(other, key, r * (p + q) + p)
        value = 0.0
        for sign, order in ((1, a), (-1, b)):
            for i in range(p):
                up[i] = drawn[order.positive[i]]
            for j in range(q):
                down[j] = other[order.negative[j]]
            if fpr < 0:
                value += sign * _auc(up, down, order.below, order.upto, room)
            else:
                value += sign * _tpr_at(up, down, order.below, fpr)
        result[r] = value
    return result


def _order(scores: Floats, positive: Bools) -> Order:
    check(scores, positive)
    up, down = scores[positive].astype(np.float64), scores[~positive].astype(np.float64)
    first, second = np.argsort(up), np.argsort(down)
    up, down = up[first], down[second]
    return Order(first, second, np.searchsorted(down, up, "left"), np.searchsorted(down, up, "right"))


def auc_interval(
    scores: Floats, positive: Bools, rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return the AUC with its 95% percentile bootstrap interval, resampled within each class."""
    order = _order(scores, positive)
    drawn = _bootstrap(order.below, order.upto, order.negative.size, -1.0, resamples, stream(rng))
    return percentiles(auc(scores, positive), drawn)


def tpr_interval(
    scores: Floats, positive: Bools, fpr: float, rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return TPR at FPR with its 95% percentile bootstrap interval, resampled within each class."""
    is_rate(fpr)
    order = _order(scores, positive)
    drawn = _bootstrap(order.below, order.upto, order.negative.size, fpr, resamples, stream(rng))
    return percentiles(tpr_at_fpr(scores, positive, fpr), drawn)


def auc_difference(
    a: Floats, b: Floats, positive: Bools, rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return the AUC of scores a less that of b, in [-1, 1], with its 95% percentile bootstrap interval.

    a and b (n,) score the same examples, without NaN; positive (n,). Both are resampled together, within each
    class. Above 0, a separates better; an interval without 0 tells them apart.

    >>> labels = np.array([False, False, True, True])
    >>> auc_difference(np.arange(4.0), -np.arange(4.0), labels, np.random.default_rng(0))
    Interval(value=1.0, lo=1.0, hi=1.0)
    """
    drawn = _paired(_order(a, positive), _order(b, positive), -1.0, resamples, stream(rng))
    return percentiles(auc(a, positive) - auc(b, positive), drawn)


def tpr_difference(
    a: Floats, b: Floats, positive: Bools, fpr: float, rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return TPR at FPR of scores a less that of b, in [-1, 1], with its 95% percentile bootstrap interval.

    As auc_difference; the threshold of either is found anew in each resample, as tpr_at_fpr does.

    >>> labels = np.array([False, False, True, True])
    >>> tpr_difference(np.arange(4.0), -np.arange(4.0), labels, 0.1, np.random.default_rng(0))
    Interval(value=1.0, lo=1.0, hi=1.0)
    """
    is_rate(fpr)
    drawn = _paired(_order(a, positive), _order(b, positive), fpr, resamples, stream(rng))
    return percentiles(tpr_at_fpr(a, positive, fpr) - tpr_at_fpr(b, positive, fpr), drawn)

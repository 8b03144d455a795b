"""How well scores separate positives from negatives, ties included: AUC and TPR at a low FPR, with intervals."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Floats, Ints
from firstline.benchmark.metrics.ranking import check, ranked
from firstline.benchmark.metrics.rates import Interval
from firstline.benchmark.metrics.resampling import percentiles, pick, stream

Codes = NDArray[np.int32]  # which distinct score an example has; narrow, since draws jump about in memory


class Curve(NamedTuple):
    """Points of a ROC curve: rates (m,) that rise from 0 to 1, and the thresholds (m,) that give them, falling."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


@njit(cache=True)
def _auc(positive: Ints | Codes, negative: Ints | Codes) -> float:
    """AUC from how often each distinct score occurs, in rising order; a tie counts one half."""
    below, wins = 0, 0.0
    for i in range(positive.size):
        wins += positive[i] * (below + 0.5 * negative[i])
        below += negative[i]
    return float(wins / (positive.sum() * below))


@njit(cache=True)
def _tpr_at(positive: Ints | Codes, negative: Ints | Codes, fpr: float) -> float:
    """The highest TPR of a threshold whose FPR is at most fpr; no interpolation between thresholds."""
    allowed = fpr * negative.sum() * (1 + 1e-12)
    hits, alarms = 0, 0
    for i in range(positive.size - 1, -1, -1):
        alarms += negative[i]
        if alarms > allowed:
            break
        hits += positive[i]
    return float(hits / positive.sum())


@njit(cache=True)
def _bootstrap(
    positive: Codes, negative: Codes, distinct: int, fpr: float, resamples: int, key: np.uint64
) -> Floats:
    """Statistics of resamples drawn with replacement within each class; fpr < 0 asks for the AUC."""
    p, q = positive.size, negative.size
    result = np.empty(resamples)
    up, down = np.empty(distinct, np.int32), np.empty(distinct, np.int32)
    for r in range(resamples):
        up[:] = 0
        down[:] = 0
        start = r * (p + q)
        for i in range(p):
            up[positive[pick(key, start + i, p)]] += 1
        for i in range(q):
            down[negative[pick(key, start + p + i, q)]] += 1
        result[r] = _auc(up, down) if fpr < 0 else _tpr_at(up, down, fpr)
    return result


@njit(cache=True)
def _paired(
    positive: Codes, negative: Codes, distinct: Ints, fpr: float, resamples: int, key: np.uint64
) -> Floats:
    """What the first system's statistic is above the second's in each resample.

    positive (p, 2) and negative (q, 2) hold the code of each example's score under either system; both systems
    get the same draws.
    """
    p, q = len(positive), len(negative)
    result = np.empty(resamples)
    most = distinct.max()
    up, down = np.empty((2, most), np.int32), np.empty((2, most), np.int32)
    for r in range(resamples):
        up[:] = 0
        down[:] = 0
        start = r * (p + q)
        for i in range(p):
            example = pick(key, start + i, p)
            up[0, positive[example, 0]] += 1
            up[1, positive[example, 1]] += 1
        for i in range(q):
            example = pick(key, start + p + i, q)
            down[0, negative[example, 0]] += 1
            down[1, negative[example, 1]] += 1
        if fpr < 0:
            result[r] = _auc(up[0], down[0]) - _auc(up[1], down[1])
        else:
            result[r] = _tpr_at(up[0], down[0], fpr) - _tpr_at(up[1], down[1], fpr)
    return result


def _codes(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Codes, Codes, int]:
    check(scores, positive)
    distinct, code = np.unique(scores, return_inverse=True)
    codes: Codes = code.astype(np.int32)
    return codes[positive], codes[~positive], distinct.size


def _is_rate(fpr: float) -> None:
    if not 0 <= fpr <= 1:
        raise ValueError(f"the false-positive rate must lie in [0, 1], got {fpr}; 1% is 0.01")


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the chance that a positive scores above a negative, ties counting one half, in [0, 1].

    scores is (n,), without NaN; positive (n,). Source: Hanley & McNeil 1982, Radiology 143.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))
    0.875
    """
    table = ranked(scores, positive)
    return float(_auc(table.positive, table.negative))


def tpr_at_fpr(scores: Floats, positive: NDArray[np.bool_], fpr: float) -> float:
    """Return the highest true-positive rate of a threshold whose false-positive rate is at most fpr, in [0, 1].

    Source: Carlini et al. 2022, arXiv:2112.03570, section III. No interpolation: with fewer than 1 / fpr
    negatives no false positive is allowed at all.
    """
    _is_rate(fpr)
    table = ranked(scores, positive)
    return float(_tpr_at(table.positive, table.negative, fpr))


def roc_curve(scores: Floats, positive: NDArray[np.bool_]) -> Curve:
    """Return the false- and true-positive rate at every distinct score as the threshold, and at infinity.

    scores is (n,), without NaN; an example is called positive when its score is at least the threshold, so equal
    scores are one point. Rates are shares in [0, 1]; a curve further up and left is better. The first point is
    (0, 0) at a threshold of infinity. Source: Fawcett 2006, Pattern Recognition Letters 27, algorithm 1.

    >>> curve = roc_curve(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))
    >>> curve.fpr.tolist(), curve.tpr.tolist(), curve.thresholds.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0], [inf, 0.8, 0.4, 0.1])
    """
    table = ranked(scores, positive)
    fpr, tpr = (
        np.concatenate(([0.0], np.cumsum(kind[::-1]) / kind.sum()))
        for kind in (table.negative, table.positive)
    )
    return Curve(fpr, tpr, np.concatenate(([np.inf], table.scores[::-1])))


def auc_interval(
    scores: Floats, positive: NDArray[np.bool_], rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return the AUC with its 95% percentile bootstrap interval, resampled within each class."""
    up, down, distinct = _codes(scores, positive)
    drawn = _bootstrap(up, down, distinct, -1.0, resamples, stream(rng))
    value = auc(scores, positive)
    return percentiles(value, drawn)


def tpr_interval(
    scores: Floats, positive: NDArray[np.bool_], fpr: float, rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return TPR at FPR with its 95% percentile bootstrap interval, resampled within each class."""
    _is_rate(fpr)
    up, down, distinct = _codes(scores, positive)
    drawn = _bootstrap(up, down, distinct, fpr, resamples, stream(rng))
    value = tpr_at_fpr(scores, positive, fpr)
    return percentiles(value, drawn)


def auc_difference(
    a: Floats, b: Floats, positive: NDArray[np.bool_], rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return the AUC of scores a less that of b, in [-1, 1], with its 95% percentile bootstrap interval.

    a and b (n,) score the same examples, without NaN; positive (n,). Both are resampled together, within each
    class. Above 0, a separates better; an interval without 0 tells them apart.

    >>> labels = np.array([False, False, True, True])
    >>> auc_difference(np.arange(4.0), -np.arange(4.0), labels, np.random.default_rng(0))
    Interval(value=1.0, lo=1.0, hi=1.0)
    """
    value = auc(a, positive) - auc(b, positive)
    return percentiles(value, _differences(a, b, positive, -1.0, rng, resamples))


def tpr_difference(
    a: Floats,
    b: Floats,
    positive: NDArray[np.bool_],
    fpr: float,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Interval:
    """Return TPR at FPR of scores a less that of b, in [-1, 1], with its 95% percentile bootstrap interval.

    As auc_difference; the threshold of either is found anew in each resample, as tpr_at_fpr does.

    >>> labels = np.array([False, False, True, True])
    >>> tpr_difference(np.arange(4.0), -np.arange(4.0), labels, 0.1, np.random.default_rng(0))
    Interval(value=1.0, lo=1.0, hi=1.0)
    """
    value = tpr_at_fpr(a, positive, fpr) - tpr_at_fpr(b, positive, fpr)
    return percentiles(value, _differences(a, b, positive, fpr, rng, resamples))


def _differences(
    a: Floats,
    b: Floats,
    positive: NDArray[np.bool_],
    fpr: float,
    rng: np.random.Generator,
    resamples: int,
) -> Floats:
    one, other = _codes(a, positive), _codes(b, positive)
    up, down = (np.stack((one[kind], other[kind]), axis=1) for kind in (0, 1))
    drawn: Floats = _paired(up, down, np.array([one[2], other[2]]), fpr, resamples, stream(rng))
    return drawn

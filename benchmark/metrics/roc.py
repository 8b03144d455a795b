"""How well scores separate positives from negatives, ties included: AUC and TPR at a low FPR, with intervals."""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.rates import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@njit(cache=True)
def _auc(positive: Ints, negative: Ints) -> float:
    """AUC from how often each distinct score occurs, in rising order; a tie counts one half."""
    below, wins = 0, 0.0
    for i in range(positive.size):
        wins += positive[i] * (below + 0.5 * negative[i])
        below += negative[i]
    return float(wins / (positive.sum() * below))


@njit(cache=True)
def _tpr_at(positive: Ints, negative: Ints, fpr: float) -> float:
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
    positive: Ints, negative: Ints, distinct: int, fpr: float, resamples: int, rng: np.random.Generator
) -> Floats:
    """Statistics of resamples drawn with replacement within each class; fpr < 0 asks for the AUC."""
    result = np.empty(resamples)
    up, down = np.empty(distinct, np.int64), np.empty(distinct, np.int64)
    for r in range(resamples):
        up[:] = 0
        down[:] = 0
        for _ in range(positive.size):
            up[positive[int(rng.random() * positive.size)]] += 1
        for _ in range(negative.size):
            down[negative[int(rng.random() * negative.size)]] += 1
        result[r] = _auc(up, down) if fpr < 0 else _tpr_at(up, down, fpr)
    return result


def _codes(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Ints, Ints, int]:
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(
            f"need one score per example, got {scores.shape} scores for {positive.shape} examples"
        )
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN")
    if positive.all() or not positive.any():
        raise ValueError("need positives and negatives: all examples are of one kind")
    distinct, code = np.unique(scores, return_inverse=True)
    code = code.astype(np.int64)
    return code[positive], code[~positive], distinct.size


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the chance that a positive scores above a negative, ties counting one half, in [0, 1].

    scores is (n,), without NaN; positive (n,). Source: Hanley & McNeil 1982, Radiology 143.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))
    0.875
    """
    up, down, distinct = _codes(scores, positive)
    return float(_auc(np.bincount(up, minlength=distinct), np.bincount(down, minlength=distinct)))


def tpr_at_fpr(scores: Floats, positive: NDArray[np.bool_], fpr: float) -> float:
    """Return the highest true-positive rate of a threshold whose false-positive rate is at most fpr, in [0, 1].

    Source: Carlini et al. 2022, arXiv:2112.03570, section III. No interpolation: with fewer than 1 / fpr
    negatives no false positive is allowed at all.
    """
    up, down, distinct = _codes(scores, positive)
    return float(_tpr_at(np.bincount(up, minlength=distinct), np.bincount(down, minlength=distinct), fpr))


def auc_interval(
    scores: Floats, positive: NDArray[np.bool_], rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return the AUC with its 95% percentile bootstrap interval, resampled within each class."""
    up, down, distinct = _codes(scores, positive)
    drawn = _bootstrap(up, down, distinct, -1.0, resamples, rng)
    value = auc(scores, positive)
    return Interval(value, min(value, _quantile(drawn, 0.025)), max(value, _quantile(drawn, 0.975)))


def tpr_interval(
    scores: Floats, positive: NDArray[np.bool_], fpr: float, rng: np.random.Generator, resamples: int = 1000
) -> Interval:
    """Return TPR at FPR with its 95% percentile bootstrap interval, resampled within each class."""
    up, down, distinct = _codes(scores, positive)
    drawn = _bootstrap(up, down, distinct, fpr, resamples, rng)
    value = tpr_at_fpr(scores, positive, fpr)
    return Interval(value, min(value, _quantile(drawn, 0.025)), max(value, _quantile(drawn, 0.975)))


def _quantile(values: Floats, q: float) -> float:
    """The order statistic at q, no interpolation: an attained value."""
    ordered = np.sort(values)
    return float(ordered[min(len(ordered) - 1, math.floor(q * len(ordered)))])

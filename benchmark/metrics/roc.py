"""How well scores separate positives from negatives, ties included: AUC, TPR at a low FPR, the ROC curve."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Floats, Ints
from firstline.benchmark.metrics.ranking import ranked


class Curve(NamedTuple):
    """Points of a ROC curve: rates (m,) that rise from 0 to 1, and the thresholds (m,) that give them, falling."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


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


def is_rate(rate: float, kind: str = "false-positive") -> None:
    """Raise ValueError unless rate is a share; kind says of what, in the message."""
    if not 0 <= rate <= 1:
        raise ValueError(f"the {kind} rate must lie in [0, 1], got {rate}; 1% is 0.01")


def resolvable(rate: float, examples: int) -> bool:
    """Return whether this many examples allow at least one error at rate; with fewer, a TPR there says little.

    >>> resolvable(0.001, 999), resolvable(0.001, 1000)
    (False, True)
    """
    return rate * examples * (1 + 1e-12) >= 1


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
    is_rate(fpr)
    table = ranked(scores, positive)
    return float(_tpr_at(table.positive, table.negative, fpr))


def tnr_at_fnr(scores: Floats, positive: NDArray[np.bool_], fnr: float) -> float:
    """Return the highest true-negative rate of a threshold whose false-negative rate is at most fnr, in [0, 1].

    How many can be told with confidence to be no members, where tpr_at_fpr says how many to be members; no
    interpolation. Source: Chen & Pattabiraman 2024, arXiv:2307.01610 (HAMP), at an FNR of 0.1%.

    >>> tnr_at_fnr(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]), 0.1)
    0.5
    """
    is_rate(fnr, "false-negative")
    return tpr_at_fpr(-scores, ~positive, fnr)


def roc_curve(scores: Floats, positive: NDArray[np.bool_]) -> Curve:
    """Return the false- and true-positive rate at every distinct score as the threshold, and at infinity.

    scores is (n,), without NaN; an example is called positive when its score is at least the threshold, so
    equal scores are one point. Rates are shares in [0, 1]; a curve further up and left is better. The first
    point is (0, 0) at a threshold of infinity. Source: Fawcett 2006, Pattern Recognition Letters 27.

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

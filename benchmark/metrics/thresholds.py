"""Thresholds found on shadow systems, whose members the attacker knows, and how right they are on a target.

The best threshold on the target itself is an oracle's: it needs the answer. Source: Song & Mittal 2021,
arXiv:2003.10595 (thresholds per class, from shadows).
"""

import numpy as np
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Bools, Floats, classes_of
from firstline.benchmark.metrics.ranking import check, ranked


def best_threshold(scores: Floats, member: Bools) -> float:
    """Return the threshold of the highest balanced accuracy when scores of at least that are called members.

    scores is (n,), without NaN, higher meaning member; member (n,), some but not all: of one shadow system or
    of several, one after another. The threshold is one of the scores, or infinity where calling nobody a member
    is as good; of equally good ones the highest. Raises ValueError for other shapes.

    >>> best_threshold(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))
    0.8
    """
    table = ranked(scores, member)
    hits, alarms = (np.append(0, np.cumsum(kind[::-1])) for kind in (table.positive, table.negative))
    # In whole numbers, since equally good thresholds differ in the last digit of a rate.
    best = np.argmax(hits * alarms[-1] - alarms * hits[-1])
    return float(np.append(np.inf, table.scores[::-1])[best])


def class_thresholds(scores: Floats, member: Bools, labels: NDArray[np.int64], classes: int) -> Floats:
    """Return the best threshold within each class (classes,), that of all classes where one lacks either kind.

    As best_threshold; labels (n,) is the class, from 0, of each example.

    >>> class_thresholds(np.array([0.1, 0.4, 5.0, 6.0]), np.array([False, True, False, True]), np.array([0, 0, 1, 1]), 3)
    array([0.4, 6. , 6. ])
    """
    check(scores, member)
    code = classes_of(labels, scores.size, classes)
    result = np.full(classes, best_threshold(scores, member))
    order = np.argsort(code, kind="stable")
    for chosen in np.split(order, np.flatnonzero(np.diff(code[order])) + 1):
        if 0 < member[chosen].sum() < chosen.size:
            result[code[chosen[0]]] = best_threshold(scores[chosen], member[chosen])
    return result


def balanced_accuracy(scores: Floats, member: Bools, threshold: float | Floats) -> float:
    """Return the mean of the shares of members and of others that threshold is right about; lower is better.

    scores and member (n,) are the target's, threshold a number or one per example (n,), such as
    class_thresholds(...)[labels]; an example is called a member when its score is at least that. The result is a
    share in [0, 1], 0.5 for guessing. Raises ValueError for other shapes, and NaN.

    >>> balanced_accuracy(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]), 0.4)
    0.75
    """
    check(scores, member)
    limits = np.asarray(threshold, np.float64)
    if limits.shape not in ((), scores.shape) or np.isnan(limits).any():
        raise ValueError(f"threshold must be a number or {scores.shape} of them, got shape {limits.shape}")
    called = scores >= limits
    return float((called[member].mean() + (~called[~member]).mean()) / 2)

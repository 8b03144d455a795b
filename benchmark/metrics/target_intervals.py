"""AUC and TPR at a low FPR over the pooled examples of several targets, with intervals over targets.

Examples of one target share its model, so that intervals over examples are too narrow: whole targets are
resampled. A resample is how often each target was drawn, so that nothing is sorted again. Source: Carlini et al.
2022, arXiv:2112.03570, section III (pooled, at low FPR); Davison & Hinkley 1997, Bootstrap Methods and their
Application, section 3.8 (whole groups are resampled).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from firstline.benchmark.metrics.checks import Bools, Floats, Ints, flags
from firstline.benchmark.metrics.ranking import check
from firstline.benchmark.metrics.rates import Interval, clopper_pearson
from firstline.benchmark.metrics.resampling import percentiles, pick, stream
from firstline.benchmark.metrics.roc import auc, is_rate, resolvable, tpr_at_fpr


class PooledRate(NamedTuple):
    """A rate with its 95% percentile bootstrap interval over targets, and with the exact one over examples.

    The exact one takes the threshold as given and members as independent, but shows what few of them can't say.
    """

    over_targets: Interval
    exact: Interval


class Order(NamedTuple):
    """Examples in falling order of scores: whose each is, whether it is a member, and whether its score goes on."""

    target: Ints
    member: Bools
    tied: Bools


@njit(cache=True)
def _draw(drawn: Ints, key: np.uint64, resample: int) -> None:
    drawn[:] = 0
    for t in range(drawn.size):
        drawn[pick(key, resample * drawn.size + t, drawn.size)] += 1


@njit(cache=True)
def _wins(order: Order, wins: Ints) -> None:
    """Twice how often a member of target s scores above a non-member of target t, ties counting one half."""
    above, same = np.zeros(len(wins), np.int64), np.zeros(len(wins), np.int64)
    start = 0
    for i in range(order.target.size):
        if order.member[i]:
            same[order.target[i]] += 1
        if order.tied[i]:
            continue
        for at in range(start, i + 1):
            if not order.member[at]:
                for s in range(len(wins)):
                    wins[order.target[at], s] += 2 * above[s] + same[s]
        for at in range(start, i + 1):
            if order.member[at]:
                above[order.target[at]] += 1
                same[order.target[at]] = 0
        start = i + 1


@njit(cache=True)
def _aucs(wins: Ints, members: Ints, others: Ints, resamples: int, key: np.uint64) -> Floats:
    """Pooled AUC of each resample; wins (targets, targets) has the non-members' target first."""
    drawn, result = np.empty(members.size, np.int64), np.empty(resamples)
    for r in range(resamples):
        _draw(drawn, key, r)
        twice, up, down = 0, 0, 0
        for t in range(drawn.size):
            up += drawn[t] * members[t]
            down += drawn[t] * others[t]
            part = 0
            for s in range(drawn.size):
                part += drawn[s] * wins[t, s]
            twice += drawn[t] * part
        result[r] = 0.5 * twice / (float(up) * down)
    return result


@njit(cache=True)
def _tprs(order: Order, members: Ints, others: Ints, fpr: float, resamples: int, key: np.uint64) -> Floats:
    """Highest TPR of a threshold whose FPR is at most fpr, of each resample."""
    drawn, result = np.empty(members.size, np.int64), np.empty(resamples)
    for r in range(resamples):
        _draw(drawn, key, r)
        up, down = 0, 0
        for t in range(drawn.size):
            up += drawn[t] * members[t]
            down += drawn[t] * others[t]
        allowed = fpr * down * (1 + 1e-12)
        hits, passed, alarms, i = 0, 0, 0, 0
        while i < order.target.size:
            if order.member[i]:
                hits += drawn[order.target[i]]
            else:
                alarms += drawn[order.target[i]]
                if alarms > allowed:
                    break
            if not order.tied[i]:
                passed = hits
            i += 1
        result[r] = passed / up
    return result


def pooled_auc(scores: Floats, member: Bools, rng: np.random.Generator, resamples: int = 1000) -> Interval:
    """Return the AUC of all targets' examples together, with its 95% percentile bootstrap interval over targets.

    scores is (targets, n), without NaN, higher meaning member, and comparable from target to target; member
    (targets, n). Raises ValueError for other shapes, fewer than 2 targets, and a target whose examples are all of
    one kind.

    >>> member = np.array([[False, True], [False, True]])
    >>> pooled_auc(np.array([[0.0, 1.0], [0.0, 1.0]]), member, np.random.default_rng(0))
    Interval(value=1.0, lo=1.0, hi=1.0)
    """
    order, members, others = _ordered(scores, member)
    wins = np.zeros((len(scores), len(scores)), np.int64)
    _wins(order, wins)
    drawn = _aucs(wins, members, others, resamples, stream(rng))
    return percentiles(auc(scores.ravel(), member.ravel()), drawn)


def pooled_tpr(
    scores: Floats, member: Bools, fpr: float, rng: np.random.Generator, resamples: int = 1000
) -> PooledRate | None:
    """Return TPR at FPR of all targets' examples together, or None where they can't resolve it.

    Arguments and errors as in pooled_auc. A rate is resolved if it allows at least one false positive; below,
    the TPR is that of no false positive at all, whatever the rate. For the TNR at a low FNR give -scores and
    ~member.

    >>> member = np.array([[False, True], [False, True]])
    >>> pooled_tpr(np.array([[0.0, 1.0], [0.0, 1.0]]), member, 0.001, np.random.default_rng(0))
    """
    is_rate(fpr)
    order, members, others = _ordered(scores, member)
    if not resolvable(fpr, int(others.sum())):
        return None
    value, n = tpr_at_fpr(scores.ravel(), member.ravel(), fpr), int(members.sum())
    drawn = _tprs(order, members, others, fpr, resamples, stream(rng))
    return PooledRate(percentiles(value, drawn), clopper_pearson(round(value * n), n))


def _ordered(scores: Floats, member: Bools) -> tuple[Order, Ints, Ints]:
    """Examples in order, and how many members and others each target has."""
    if scores.ndim != 2 or len(scores) < 2:
        raise ValueError(f"scores must be (targets, n) of at least 2 targets, got shape {scores.shape}")
    trained = flags("member", member, scores.shape)
    check(scores.ravel(), trained.ravel())
    members = trained.sum(axis=1)
    others = scores.shape[1] - members
    if not (members.all() and others.all()):
        raise ValueError(
            f"need members and others of each target: target {int(np.argmin(members * others))} lacks one kind"
        )
    falling = np.argsort(-scores.ravel())
    values = scores.ravel()[falling]
    tied = np.append(values[1:] == values[:-1], False)
    return Order(falling // scores.shape[1], trained.ravel()[falling], tied), members, others

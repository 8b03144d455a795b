"""Relative membership inference: does an example gain more from the target than examples that it surely never saw?

Ratios are kept as logarithms, so that neither small probabilities nor their ratios underflow. Source: Zarifzadeh
et al. 2024, arXiv:2312.03262; comparisons are strict, as in the authors' code.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Bools, Floats, floats
from firstline.benchmark.metrics.membership import against, untrained


@njit(cache=True)
def _log_means(log_p: Floats, used: Bools, most: Floats, total: Floats) -> None:
    """The log of the mean probability of each example over the systems used, into total; most is room."""
    k, n = log_p.shape
    most[:] = -np.inf
    total[:] = 0
    count = np.zeros(n)
    for j in range(k):
        for i in range(n):
            if used[j, i]:
                most[i] = max(most[i], log_p[j, i])
                count[i] += 1
    for j in range(k):
        for i in range(n):
            if used[j, i]:
                total[i] += np.exp(log_p[j, i] - most[i])
    for i in range(n):
        total[i] = most[i] + np.log(total[i] / count[i])


def online_log_ratios(log_p: NDArray[Any], *, refs: NDArray[Any]) -> Floats:
    """Return log p less the log of its mean over references; higher is more likely a member.

    log_p is (n,), the logs of the probabilities that the target gives the labels, at most 0, such as minus
    membership.losses; refs (k, n) those of the references, about half of them trained on each example, and none
    on an example of the population. The result (n,) is in nats. Raises ValueError for other shapes, values that
    aren't finite and probabilities above 1.

    >>> np.exp(online_log_ratios(np.log([0.8]), refs=np.log([[0.3], [0.1]])))
    array([4.])
    """
    mine, theirs, _ = _probabilities(log_p, refs, np.zeros(refs.shape, np.bool_))
    return mine - _log_mean(theirs, np.ones(theirs.shape, np.bool_))


def offline_log_ratios(log_p: NDArray[Any], *, refs: NDArray[Any], member: Bools, a: float = 0.3) -> Floats:
    """Return log p less the log of what its mean would be, by references that weren't trained on the example.

    As online_log_ratios; member (k, n) is which references were trained on which example, which leaves them out
    there (nowhere for the population). The mean is guessed as ((1 + a) mean + 1 - a) / 2, a in [0, 1]: at 0 a
    reference that was trained on the example is sure of it, at 1 training changes nothing. Raises ValueError also
    for other a, and an example that all references were trained on.

    >>> 0.9 / np.exp(offline_log_ratios(np.log([0.9]), refs=np.log([[0.5]]), member=np.array([[False]])))
    array([0.675])
    """
    mine, theirs, trained = _probabilities(log_p, refs, member)
    if not 0 <= a <= 1:
        raise ValueError(f"a must lie in [0, 1], got {a}")
    guess = np.log((1 + a) / 2) + _log_mean(theirs, untrained(trained))
    ratios: Floats = mine - (guess if a == 1 else np.logaddexp(guess, np.log((1 - a) / 2)))
    return ratios


def population_shares(ratios: NDArray[Any], *, population: NDArray[Any], gamma: float = 1.0) -> Floats:
    """Return the share of the population whose ratio an example's exceeds more than gamma times, in [0, 1].

    ratios is (n,), population (m,), of examples that nobody was trained on, both log ratios from the same target
    and references; the result (n,); higher is more likely a member. It takes m + 1 values, and ties among them
    hide low false-positive rates: rank by rmia_scores. Raises ValueError for other shapes, values that aren't
    finite and a gamma that isn't positive.

    >>> population_shares(np.array([0.0, 1.5]), population=np.array([-1.0, 0.0, 1.0, 2.0]))
    array([0.25, 0.75])
    """
    _, beaten, size = _beaten(ratios, population, gamma)
    return beaten / size


def rmia_scores(ratios: NDArray[Any], *, population: NDArray[Any], gamma: float = 1.0) -> Floats:
    """Return the population's share that an example beats, ties told apart by its own ratio, in (0, 1).

    Arguments and errors as in population_shares, whose order it never overturns: of m examples beaten b makes
    (b + s) / (m + 1), s in [0, 1] rising with the log ratio. The share saturates where it matters: with m = 1,000
    all that beat the whole population are one threshold.

    >>> rmia_scores(np.array([0.0, 1.0, 3.0]), population=np.array([-1.0])).tolist()
    [0.75, 0.875, 0.9375]
    """
    mine, beaten, size = _beaten(ratios, population, gamma)
    score: Floats = (beaten + 0.5 + 0.5 * mine / (1 + np.abs(mine))) / (size + 1)
    return score


def _log_mean(log_p: Floats, used: Bools) -> Floats:
    most, total = np.empty(log_p.shape[1]), np.empty(log_p.shape[1])
    _log_means(log_p, used, most, total)
    return total


def _probabilities(log_p: NDArray[Any], refs: NDArray[Any], member: Bools) -> tuple[Floats, Floats, Bools]:
    mine, theirs, trained = against(log_p, refs, member)
    highest = max(float(mine.max()), float(theirs.max()))
    if highest > 0:
        raise ValueError(f"log_p and refs must be logs of probabilities, at most 0, got {highest:g}")
    return mine, theirs, trained


def _beaten(
    ratios: NDArray[Any], population: NDArray[Any], gamma: float
) -> tuple[Floats, NDArray[np.intp], int]:
    """Ratios, how many of the population each of them beats, and of how many."""
    mine, others = floats("ratios", ratios, "n"), floats("ratios of the population", population, "m")
    if not 0 < gamma < np.inf:
        raise ValueError(f"gamma must be positive, got {gamma}")
    return mine, np.searchsorted(np.sort(others), mine - np.log(gamma)), others.size

"""Whether a system is as sure as it is right: expected calibration error and the Brier score."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Floats, Ints, classes_of, floats, within

SUM = 1e-4  # what the probabilities of an example may miss 1 by: float32 softmax over many classes


@njit(cache=True)
def _sum_error(probabilities: Floats) -> float:
    """The most that the probabilities of an example miss 1 by."""
    most = 0.0
    for i in range(len(probabilities)):
        total = 0.0
        for c in range(probabilities.shape[1]):
            total += probabilities[i, c]
        most = max(most, abs(total - 1))
    return most


@njit(cache=True)
def _ece(probabilities: Floats, labels: Ints, edges: Floats) -> float:
    bins = edges.size - 1
    gap = np.zeros(bins)
    for i in range(len(probabilities)):
        best = 0
        for c in range(1, probabilities.shape[1]):
            if probabilities[i, c] > probabilities[i, best]:
                best = c
        sure = probabilities[i, best]
        # Bins are (edge, next edge]; the guess may be one off where an edge is rounded.
        at = min(max(int(sure * bins), 0), bins - 1)
        while at > 0 and sure <= edges[at]:
            at -= 1
        while at < bins - 1 and sure > edges[at + 1]:
            at += 1
        gap[at] += (best == labels[i]) - sure
    return float(np.abs(gap).sum() / len(probabilities))


@njit(cache=True)
def _brier(probabilities: Floats, labels: Ints) -> float:
    total = 0.0
    for i in range(len(probabilities)):
        for c in range(probabilities.shape[1]):
            total += (probabilities[i, c] - (c == labels[i])) ** 2
    return float(total / len(probabilities))


def ece(probabilities: NDArray[Any], labels: NDArray[Any], *, bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence and accuracy are apart; lower is better.

    probabilities is (n, classes), labels (n,) whole numbers from 0. Examples are put into bins of equal width
    by their largest probability, lower edge out and upper edge in; the result is the mean gap between
    accuracy and confidence in a bin, weighted by its examples, a share in [0, 1]. Of equal probabilities the
    first class is the answer. Raises ValueError for other shapes, labels that are no class, values outside
    [0, 1] or that don't sum to 1, and fewer than one bin. Source: Guo et al. 2017, arXiv:1706.04599, eq. 3,
    and its 15 bins.

    >>> ece(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
    0.25
    """
    if bins < 1:
        raise ValueError(f"need at least one bin, got {bins}")
    p, y = _answers(probabilities, labels)
    return float(_ece(p, y, np.linspace(0, 1, bins + 1)))


def brier(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the Brier score: the mean squared distance of the answer from the truth, in [0, 2]; lower is better.

    probabilities is (n, classes), labels (n,) whole numbers from 0; squares are summed over the classes, so
    that two classes score twice what the one-class form gives. Raises ValueError as ece does. Source: Brier
    1950, Monthly Weather Review 78.

    >>> brier(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]))
    0.25
    """
    return float(_brier(*_answers(probabilities, labels)))


def _answers(probabilities: NDArray[Any], labels: NDArray[Any]) -> tuple[Floats, Ints]:
    p = floats("probabilities", probabilities, "n, classes")
    y = classes_of(labels, len(p), p.shape[1])
    within("probabilities", p, 0, 1)
    if _sum_error(p) > SUM:
        raise ValueError("the probabilities of an example must sum to 1: apply softmax to scores first")
    return p, y

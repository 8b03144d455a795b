"""Scores of positives and negatives as one table: how often each distinct score occurs in either kind."""

from typing import NamedTuple

import numpy as np
from numba import njit

from firstline.benchmark.metrics.checks import Bools, Floats, Ints


class Ranked(NamedTuple):
    """Distinct scores in rising order, and how many positives and negatives have each: (m,) all three."""

    scores: Floats
    positive: Ints
    negative: Ints


@njit(cache=True)
def _merge(up: Floats, down: Floats) -> tuple[Floats, Ints, Ints]:
    """Both kinds, sorted, as one table; a tie, also within a kind, is one row."""
    room = up.size + down.size
    scores = np.empty(room)
    positive, negative = np.zeros(room, np.int64), np.zeros(room, np.int64)
    i, j, m = 0, 0, 0
    while i < up.size or j < down.size:
        score = up[i] if j == down.size or (i < up.size and up[i] < down[j]) else down[j]
        scores[m] = score
        first = i
        while i < up.size and up[i] == score:
            i += 1
        positive[m] = i - first
        first = j
        while j < down.size and down[j] == score:
            j += 1
        negative[m] = j - first
        m += 1
    return scores[:m], positive[:m], negative[:m]


def check(scores: Floats, positive: Bools) -> None:
    """Raise ValueError unless there is one score per example, none NaN, and examples of both kinds."""
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(
            f"need one score per example, got {scores.shape} scores for {positive.shape} examples"
        )
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN")
    if positive.all() or not positive.any():
        raise ValueError("need positives and negatives: all examples are of one kind")


def ranked(scores: Floats, positive: Bools) -> Ranked:
    """Return the table of scores (n,), without NaN, of examples of which some are positive (n,).

    >>> ranked(np.array([0.4, 0.1, 0.4]), np.array([True, False, False]))
    Ranked(scores=array([0.1, 0.4]), positive=array([0, 1]), negative=array([1, 1]))
    """
    check(scores, positive)
    values = scores.astype(np.float64, copy=False)
    # Sorting the kinds apart needs no order of indices, and plain sorting runs in vector instructions.
    return Ranked(*_merge(np.sort(values[positive]), np.sort(values[~positive])))

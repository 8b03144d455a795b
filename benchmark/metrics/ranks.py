"""Several systems on the same examples: the rank of each, and which ranks it could as well have."""

from typing import NamedTuple

import numpy as np
from numba import njit

from firstline.benchmark.metrics.checks import Bools, Ints
from firstline.benchmark.metrics.resampling import pick, stream


class Rank(NamedTuple):
    """A rank, counted from 1, between its 95% limits."""

    rank: int
    lo: int
    hi: int


@njit(cache=True)
def _ranks(outcomes: Bools, resamples: int, key: np.uint64) -> tuple[Ints, Ints]:
    """Best and worst rank (resamples, systems) in resamples of the examples; outcomes is (examples, systems)."""
    n, systems = outcomes.shape
    best, worst = np.empty((resamples, systems), np.int64), np.empty((resamples, systems), np.int64)
    held = np.empty(systems, np.int64)
    for r in range(resamples):
        held[:] = 0
        for i in range(n):
            example = pick(key, r * n + i, n)
            for s in range(systems):
                held[s] += outcomes[example, s]
        for s in range(systems):
            best[r, s] = 1 + (held > held[s]).sum()
            worst[r, s] = (held >= held[s]).sum()
    return best, worst


def rank_intervals(outcomes: Bools, rng: np.random.Generator, resamples: int = 1000) -> list[Rank]:
    """Return the rank of each system by its share of examples that hold (1 is best), with 95% limits.

    outcomes is (systems, examples): whether each system holds on each of the same examples. Equal shares have the
    same rank, the best of those they take up; limits are percentiles over resamples of the examples, the lower
    one of the best and the upper one of the worst rank that a system takes up there. So systems that never differ
    share all the ranks between them. The limits hold for each system by itself, not for all at once.
    Raises ValueError unless there is a system and an example. Source: Goldstein & Spiegelhalter 1996, JRSS A 159,
    with the percentile bootstrap.

    >>> rank_intervals(np.array([[True] * 9, [False] * 9, [True] * 9]), np.random.default_rng(0))
    [Rank(rank=1, lo=1, hi=2), Rank(rank=3, lo=3, hi=3), Rank(rank=1, lo=1, hi=2)]
    """
    if outcomes.ndim != 2 or outcomes.size == 0:
        raise ValueError(f"outcomes must be (systems, examples) and not empty, got shape {outcomes.shape}")
    if outcomes.dtype != np.bool_:
        raise ValueError(f"outcomes must say True or False per example, got {outcomes.dtype}")
    if resamples < 1:
        raise ValueError(f"need at least one resample, got {resamples}")
    best, worst = _ranks(np.ascontiguousarray(outcomes.T), resamples, stream(rng))
    lo = np.quantile(best, 0.025, axis=0, method="inverted_cdf")
    hi = np.quantile(worst, 0.975, axis=0, method="inverted_cdf")
    held = outcomes.sum(axis=1)
    ranks = [int(1 + (held > mine).sum()) for mine in held]
    return [Rank(r, min(r, int(a)), max(r, int(b))) for r, a, b in zip(ranks, lo, hi, strict=True)]

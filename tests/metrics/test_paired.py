"""Two or more systems on the same examples: differences and ranks, against slow bootstraps and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.metrics.paired import mean_difference
from firstline.benchmark.metrics.ranks import Rank, rank_intervals
from firstline.benchmark.metrics.resampling import percentiles, pick, stream
from firstline.benchmark.metrics.roc import auc, tpr_at_fpr
from firstline.benchmark.metrics.roc_intervals import auc_difference, tpr_difference


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_draws_are_equally_likely_and_independent_from_place_to_place():
    key = stream(rng())
    drawn = np.array([pick(key, place, 10) for place in range(40_000)])
    pairs = np.bincount(10 * drawn[::2] + drawn[1::2], minlength=100)
    # 99 degrees of freedom: beyond 149 once in 1,000 keys.
    assert ((pairs - 200) ** 2 / 200).sum() < 149
    assert drawn.min() == 0
    assert drawn.max() == 9


def test_draws_cover_a_large_range_without_leaving_it():
    key, n = stream(rng(1)), 10**9
    drawn = np.array([pick(key, place, n) for place in range(1000)])
    assert 0 <= drawn.min() < n / 100
    assert n * 0.99 < drawn.max() < n


def test_percentiles_hold_the_value_though_no_resample_came_near():
    assert percentiles(2.0, np.array([0.0, 1.0])) == (2.0, 0.0, 2.0)
    with pytest.raises(ValueError, match="need at least one resample, got 0"):
        percentiles(0.0, np.empty(0))


@pytest.mark.parametrize("offset", [0.0, 1e9, -1e12])
def test_the_difference_of_means_has_the_interval_of_the_central_limit_theorem(offset):
    a, noise = rng(1).normal(size=2000), rng(2).normal(size=2000)
    scale = 1e3 if offset else 1.0  # at 1e12 a double has 4 decimals left
    found = mean_difference(offset + scale * (a + 0.2 * noise), offset + scale * a, rng(), 4000)
    half = 1.96 * 0.2 * noise.std() / np.sqrt(2000)
    assert found.value / scale == pytest.approx(0.2 * noise.mean(), abs=1e-6)
    assert found.lo / scale == pytest.approx(0.2 * noise.mean() - half, abs=0.06 * half)
    assert found.hi / scale == pytest.approx(0.2 * noise.mean() + half, abs=0.06 * half)


def test_a_difference_between_huge_offsets_keeps_its_digits():
    d = rng(1).normal(size=500)
    small = mean_difference(d, np.zeros(500), rng(), 200)
    large = mean_difference(1e9 + d, np.zeros(500), rng(), 200)
    assert np.subtract(large, 1e9) == pytest.approx(np.array(small), abs=1e-6)


def test_swapping_the_systems_turns_the_difference_around():
    a, b = rng(1).random(300) < 0.7, rng(2).random(300) < 0.6
    one, other = mean_difference(a, b, rng(), 4000), mean_difference(b, a, rng(), 4000)
    assert one.value == -other.value == pytest.approx(a.mean() - b.mean(), abs=1e-15)
    assert (one.lo, one.hi) == pytest.approx((-other.hi, -other.lo), abs=0.004)


def test_pairing_narrows_the_interval_of_systems_that_fail_together():
    hard = rng(1).random(1000) < 0.4
    a, b = ~hard, ~hard & (rng(2).random(1000) < 0.98)
    apart = mean_difference(a, rng(3).permutation(b), rng(), 1000)
    together = mean_difference(a, b, rng(), 1000)
    assert together.hi - together.lo < 0.4 * (apart.hi - apart.lo)
    assert together.lo > 0 > apart.lo


def labelled(n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of two systems that share what they know, with ties, and labels."""
    positive = np.arange(n) < n // 3
    shared = rng(4).normal(size=n) + positive
    return np.round(shared + 0.3 * positive, 1), np.round(shared + 0.5 * rng(5).normal(size=n), 1), positive


@pytest.mark.parametrize("fpr", [None, 0.1])
def test_the_difference_of_two_rankings_has_the_interval_of_a_slow_paired_bootstrap(fpr):
    a, b, positive = labelled()
    up, down, draws = np.flatnonzero(positive), np.flatnonzero(~positive), rng(9)

    def statistic(scores, kinds):
        return auc(scores, kinds) if fpr is None else tpr_at_fpr(scores, kinds, fpr)

    slow = []
    for _ in range(1500):
        i = np.r_[draws.choice(up, up.size), draws.choice(down, down.size)]
        slow.append(statistic(a[i], positive[i]) - statistic(b[i], positive[i]))
    if fpr is None:
        found = auc_difference(a, b, positive, rng(), 1500)
    else:
        found = tpr_difference(a, b, positive, fpr, rng(), 1500)
    assert found.value == statistic(a, positive) - statistic(b, positive)
    expected = np.quantile(slow, [0.025, 0.975])
    assert (found.lo, found.hi) == pytest.approx(tuple(expected), abs=0.01 if fpr is None else 0.05)


def test_a_ranking_does_not_differ_from_itself_in_any_resample():
    a, _, positive = labelled()
    assert auc_difference(a, 2 * a + 1, positive, rng(), 50) == (0, 0, 0)
    assert tpr_difference(a, a, positive, 0.05, rng(), 50) == (0, 0, 0)


def naive_ranks(outcomes: np.ndarray, draws: np.random.Generator, resamples: int) -> list[tuple[int, int]]:
    """Sort the systems in every resample, once for the best and once for the worst place in a tie."""
    best, worst = [], []
    for _ in range(resamples):
        shares = outcomes[:, draws.integers(0, outcomes.shape[1], outcomes.shape[1])].mean(axis=1)
        ordered = sorted(shares, reverse=True)
        best.append([ordered.index(share) + 1 for share in shares])
        worst.append([len(ordered) - ordered[::-1].index(share) for share in shares])
    lo, hi = (np.quantile(x, q, axis=0, method="nearest") for x, q in ((best, 0.025), (worst, 0.975)))
    return [(int(a), int(b)) for a, b in zip(lo, hi, strict=True)]


def test_rank_intervals_are_those_of_a_slow_bootstrap():
    shares = np.array([0.5, 0.8, 0.52, 0.2, 0.79])
    outcomes = rng(1).random((5, 200)) < shares[:, None]
    found = rank_intervals(outcomes, rng(), 2000)
    assert [(rank.lo, rank.hi) for rank in found] == naive_ranks(outcomes, rng(7), 2000)
    held = outcomes.mean(axis=1)
    assert [rank.rank for rank in found] == [1 + int((held > mine).sum()) for mine in held]
    assert found[3] == Rank(5, 5, 5)
    assert found[0].hi > found[0].lo


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_ranks_lie_between_their_limits_and_systems_that_never_differ_share_theirs(systems, n, seed):
    outcomes = rng(seed).random((systems, n)) < 0.5
    found = rank_intervals(np.concatenate((outcomes, outcomes[:1])), rng(seed), 50)
    assert all(1 <= rank.lo <= rank.rank <= rank.hi <= systems + 1 for rank in found)
    assert found[0] == found[-1]
    assert found[0].hi > found[0].lo


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: mean_difference(np.ones(3), np.ones(4), rng()), r"one shape, got \(3,\) and \(4,\)"),
        (lambda: mean_difference(np.array([np.nan]), np.ones(1), rng()), "1 of 1 values of a are NaN"),
        (lambda: mean_difference(np.ones((2, 2)), np.ones((2, 2)), rng()), r"values of a must be \(n\)"),
        (lambda: mean_difference(np.empty(0), np.empty(0), rng()), "and not empty"),
        (lambda: mean_difference(np.ones(2), np.ones(2), rng(), 0), "at least one resample"),
        (lambda: tpr_difference(*labelled(), -1.0, rng()), r"must lie in \[0, 1\], got -1"),
        (lambda: auc_difference(np.ones(2), np.ones(3), np.array([True, False]), rng()), "one score per example"),
        (lambda: rank_intervals(np.ones(3, bool), rng()), r"must be \(systems, examples\)"),
        (lambda: rank_intervals(np.ones((2, 0), bool), rng()), "not empty"),
        (lambda: rank_intervals(np.ones((2, 3)), rng()), "True or False per example, got float64"),
        (lambda: rank_intervals(np.ones((2, 3), bool), rng(), 0), "at least one resample, got 0"),
    ],
)  # fmt: skip
def test_what_can_not_be_compared_is_refused(ask, said):
    with pytest.raises(ValueError, match=said):
        ask()

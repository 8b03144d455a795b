"""Proportions, against SciPy and the slow and obvious."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from firstline.benchmark.metrics.rates import clopper_pearson, holm, mcnemar, wilson

COUNTS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
PAIRS = st.integers(1, 60).flatmap(
    lambda n: st.tuples(arrays(np.bool_, n), arrays(np.bool_, n), st.permutations(range(n)))
)


@given(COUNTS)
@settings(deadline=None)
def test_wilson_is_the_interval_of_scipy(counts):
    successes, n = counts
    expected = binomtest(successes, n).proportion_ci(0.95, "wilson")
    found = wilson(successes, n)
    assert found.value == successes / n
    assert (found.lo, found.hi) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.lo <= found.value <= found.hi <= 1


@given(COUNTS)
@settings(deadline=None)
def test_wilson_treats_failures_like_successes(counts):
    successes, n = counts
    one, other = wilson(successes, n), wilson(n - successes, n)
    assert (one.lo, one.hi) == pytest.approx((1 - other.hi, 1 - other.lo), abs=1e-12)


@given(COUNTS)
@settings(deadline=None)
def test_clopper_and_pearsons_interval_is_that_of_scipy(counts):
    successes, n = counts
    expected = binomtest(successes, n).proportion_ci(0.95, "exact")
    found = clopper_pearson(successes, n)
    assert found.value == successes / n
    assert (found.lo, found.hi) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert 0 <= found.lo <= found.value <= found.hi <= 1


def test_clopper_and_pearsons_interval_has_a_closed_form_without_successes():
    assert clopper_pearson(0, 1500) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 1500)), rel=1e-12)


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (1, -5)])
def test_intervals_refuse_what_is_no_share(interval, successes, n):
    with pytest.raises(ValueError, match=f"need 0 <= successes <= n and n > 0, got {successes} of {n}"):
        interval(successes, n)


@given(PAIRS)
@settings(deadline=None)
def test_mcnemar_is_the_binomial_test_of_scipy(pair):
    a, b, order = pair
    wins, losses = int((a > b).sum()), int((b > a).sum())
    expected = binomtest(wins, wins + losses, alternative="two-sided").pvalue if wins + losses else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(b, a) == mcnemar(a, b)
    assert mcnemar(a[order], b[order]) == mcnemar(a, b)


def test_examples_on_which_both_agree_do_not_count():
    a, b = np.array([True, True, False]), np.array([True, False, False])
    agreed = np.ones(50, bool)
    assert mcnemar(np.r_[a, agreed], np.r_[b, agreed]) == mcnemar(a, b)


@pytest.mark.parametrize("shape", [(3,), (4, 1), (2, 2)])
def test_mcnemar_refuses_vectors_that_do_not_pair(shape):
    with pytest.raises(ValueError, match=r"need two vectors of one length, got \(4,\) and"):
        mcnemar(np.ones(4, bool), np.ones(shape, bool))


def naive_holm(p: list[float]) -> list[float]:
    """Adjust each p-value by every step at or before its own, as Holm's procedure rejects."""
    ranked = sorted(p)
    return [min(1.0, max((len(p) - i) * q for i, q in enumerate(ranked) if q <= mine)) for mine in p]


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.05, 1.0]), max_size=12))
@settings(deadline=None)
def test_holm_is_the_naive_one(p):
    found = holm(np.array(p, float))
    assert found.tolist() == pytest.approx(naive_holm(p), rel=1e-12)
    assert (found >= np.array(p)).all()


def test_holm_leaves_its_input_alone():
    p = np.array([0.03, 0.01])
    holm(p)
    assert p.tolist() == [0.03, 0.01]

"""AUC and TPR at a low FPR, against scikit-learn and the slow and obvious."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from firstline.benchmark.metrics.roc import auc, resolvable, tnr_at_fnr, tpr_at_fpr
from firstline.benchmark.metrics.roc_intervals import auc_interval, tpr_interval


@st.composite
def scored(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties or few, and at least one example of each kind."""
    n = draw(st.integers(2, 40))
    values = st.integers(0, draw(st.sampled_from([0, 2, 5, 10**6]))).map(float) | st.floats(-1, 1)
    scores = draw(st.lists(values, min_size=n, max_size=n))
    positive = draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2))
    return np.array(scores), np.array([*positive, True, False])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def shuffled(*arrays: np.ndarray) -> list[np.ndarray]:
    order = rng(3).permutation(len(arrays[0]))
    return [array[order] for array in arrays]


@given(scored())
@settings(deadline=None)
def test_auc_is_that_of_scikit_learn_with_ties(example):
    scores, positive = example
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert auc(*shuffled(scores, positive)) == auc(scores, positive)
    assert auc(-scores, positive) == pytest.approx(1 - auc(scores, positive), abs=1e-12)


def naive_tpr(scores: np.ndarray, positive: np.ndarray, fpr: float) -> float:
    """Try every threshold, and one above all scores."""
    best = 0.0
    for threshold in [*scores, np.inf]:
        called = scores >= threshold
        if called[~positive].mean() <= fpr + 1e-12:
            best = max(best, called[positive].mean())
    return best


@given(scored(), st.sampled_from([0.0, 0.001, 0.01, 0.1, 1 / 3, 0.5, 1.0]))
@settings(deadline=None)
def test_tpr_at_fpr_is_the_best_of_all_thresholds(example, fpr):
    scores, positive = example
    assert tpr_at_fpr(scores, positive, fpr) == naive_tpr(scores, positive, fpr)
    assert tpr_at_fpr(*shuffled(scores, positive), fpr) == tpr_at_fpr(scores, positive, fpr)


@given(scored(), st.sampled_from([0.0, 0.01, 0.1, 1 / 3, 1.0]))
@settings(deadline=None)
def test_tnr_at_fnr_is_the_best_of_all_thresholds(example, fnr):
    scores, positive = example
    best = 0.0
    for threshold in [*scores, -np.inf]:
        cleared = scores <= threshold
        if cleared[positive].mean() <= fnr + 1e-12:
            best = max(best, cleared[~positive].mean())
    assert tnr_at_fnr(scores, positive, fnr) == best


@pytest.mark.parametrize(("rate", "least"), [(0.1, 10), (0.01, 100), (0.001, 1000), (0.29, 4), (1.0, 1)])
def test_a_rate_is_resolved_by_as_many_examples_as_make_one_error(rate, least):
    assert next(n for n in range(1, 2 * least + 1) if resolvable(rate, n)) == least
    assert not resolvable(0.0, 10**9)


def test_a_false_negative_rate_outside_0_and_1_is_refused():
    with pytest.raises(ValueError, match=r"the false-negative rate must lie in \[0, 1\], got 2"):
        tnr_at_fnr(np.arange(2.0), np.array([True, False]), 2)


def test_an_fpr_that_is_a_whole_number_of_negatives_allows_them_all():
    scores, positive = np.arange(200.0), np.arange(200) % 2 == 0  # negatives 1, 3, …, 199
    found = [tpr_at_fpr(scores, positive, k / 100) for k in range(101)]
    assert found == [k / 100 for k in range(100)] + [1.0]  # though 0.29 * 100 is less than 29 in floats


def test_scores_may_be_infinite_and_of_any_float_type():
    scores, positive = np.array([-np.inf, 0.0, 0.5, np.inf]), np.array([False, True, False, True])
    assert auc(scores, positive) == 0.75
    assert auc(scores.astype(np.float32), positive) == 0.75


@pytest.mark.parametrize("fpr", [None, 0.1])
def test_an_interval_is_the_same_for_the_same_seed_and_holds_the_value(fpr):
    positive = np.arange(200) < 80
    scores = rng(1).normal(size=200) + positive

    def interval(seed: int):
        if fpr is None:
            return auc_interval(scores, positive, rng(seed), 300)
        return tpr_interval(scores, positive, fpr, rng(seed), 300)

    first = interval(0)
    assert interval(0) == first
    assert interval(1) != first
    assert first.value == (auc(scores, positive) if fpr is None else tpr_at_fpr(scores, positive, fpr))
    assert 0 <= first.lo < first.value < first.hi <= 1


@given(scored())
@settings(deadline=None, max_examples=25)
def test_an_interval_always_holds_its_value(example):
    for found in (auc_interval(*example, rng(), 20), tpr_interval(*example, 0.1, rng(), 20)):
        assert 0 <= found.lo <= found.value <= found.hi <= 1


@pytest.mark.parametrize("fpr", [None, 0.1])
def test_the_interval_is_that_of_a_slow_bootstrap_within_each_class(fpr):
    positive = np.arange(150) < 50
    scores = np.round(rng(2).normal(size=150) + positive, 1)
    up, down, draws = scores[positive], scores[~positive], rng(9)
    slow = []
    for _ in range(1500):
        drawn = np.r_[draws.choice(up, 50), draws.choice(down, 100)]
        slow.append(naive_auc(drawn, 50) if fpr is None else naive_tpr_sorted(drawn, 50, fpr))
    if fpr is None:
        found = auc_interval(scores, positive, rng(), 1500)
    else:
        found = tpr_interval(scores, positive, fpr, rng(), 1500)
    expected = np.quantile(slow, [0.025, 0.975])
    assert (found.lo, found.hi) == pytest.approx(tuple(expected), abs=0.02 if fpr is None else 0.05)


def naive_auc(drawn: np.ndarray, positives: int) -> float:
    """Compare every positive with every negative."""
    up, down = drawn[:positives, None], drawn[None, positives:]
    return float(((up > down) + 0.5 * (up == down)).mean())


def naive_tpr_sorted(drawn: np.ndarray, positives: int, fpr: float) -> float:
    """TPR at the lowest threshold above the negative that would be one too many."""
    up, down = drawn[:positives], np.sort(drawn[positives:])[::-1]
    return float((up > down[int(fpr * len(down))]).mean())


@pytest.mark.parametrize(
    ("scores", "positive", "said"),
    [
        ([0.1, 0.2], [True], r"one score per example, got \(2,\) scores for \(1,\) examples"),
        ([[0.1], [0.2]], [[True], [False]], r"one score per example, got \(2, 1\)"),
        ([np.nan, 0.2, np.nan], [True, False, True], "2 of 3 scores are NaN"),
        ([0.1, 0.2], [True, True], "need positives and negatives: all examples are of one kind"),
        ([0.1, 0.2], [False, False], "need positives and negatives"),
        ([], [], "need positives and negatives"),
    ],
)
def test_what_can_not_be_ranked_is_refused(scores, positive, said):
    given_scores, kinds = np.array(scores, float), np.array(positive, bool)
    for ask in (
        lambda: auc(given_scores, kinds),
        lambda: tpr_at_fpr(given_scores, kinds, 0.1),
        lambda: auc_interval(given_scores, kinds, rng()),
        lambda: tpr_interval(given_scores, kinds, 0.1, rng()),
    ):
        with pytest.raises(ValueError, match=said):
            ask()

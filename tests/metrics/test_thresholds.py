"""Thresholds from shadows, against the slow and obvious, and against what an oracle would say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.metrics.thresholds import balanced_accuracy, best_threshold, class_thresholds


@st.composite
def scored(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties or few, and at least one member and one other."""
    n = draw(st.integers(2, 30))
    values = st.integers(0, draw(st.sampled_from([0, 2, 5, 10**6]))).map(float) | st.floats(-1, 1)
    scores = draw(st.lists(values, min_size=n, max_size=n))
    member = draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2))
    return np.array(scores), np.array([*member, True, False])


def naive_threshold(scores: np.ndarray, member: np.ndarray) -> float:
    """Of all thresholds, from the highest on, the first that is better than those before; in whole numbers."""
    best, most = np.inf, 0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        gain = int(called[member].sum()) * int((~member).sum()) - int(called[~member].sum()) * int(
            member.sum()
        )
        if gain > most:
            best, most = threshold, gain
    return best


@given(scored())
@settings(deadline=None)
def test_the_best_threshold_is_the_naive_one_with_ties(example):
    scores, member = example
    best = best_threshold(scores, member)
    assert best == naive_threshold(scores, member)
    highest = max(balanced_accuracy(scores, member, t) for t in [*scores, np.inf])
    assert balanced_accuracy(scores, member, best) == pytest.approx(highest, abs=1e-15)
    order = np.random.default_rng(0).permutation(scores.size)
    assert best_threshold(scores[order], member[order]) == best


@given(scored(), st.integers(1, 4))
@settings(deadline=None)
def test_a_class_has_its_own_threshold_or_that_of_all(example, classes):
    scores, member = example
    labels = np.random.default_rng(scores.size).integers(0, classes, scores.size)
    expected = []
    for c in range(classes):
        own = labels == c
        mixed = own.any() and len(set(member[own])) == 2
        expected.append(
            naive_threshold(scores[own], member[own]) if mixed else naive_threshold(scores, member)
        )
    assert class_thresholds(scores, member, labels, classes).tolist() == expected


def test_scores_that_say_nothing_call_nobody_a_member():
    scores, member = np.array([1.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])
    assert best_threshold(scores, member) == np.inf
    assert balanced_accuracy(scores, member, np.inf) == 0.5
    assert best_threshold(-np.arange(4.0), np.arange(4) >= 2) == np.inf  # members score lowest


def test_classes_of_different_scale_need_thresholds_of_their_own():
    rng, labels = np.random.default_rng(0), np.arange(400) % 2
    member = rng.random(400) < 0.5
    scores = 100.0 * labels + member
    assert class_thresholds(scores, member, labels, 2).tolist() == [1, 101]
    own = class_thresholds(scores, member, labels, 2)[labels]
    assert balanced_accuracy(scores, member, own) == 1
    assert balanced_accuracy(scores, member, best_threshold(scores, member)) < 0.8


def test_a_threshold_from_shadows_is_no_oracle():
    member = np.arange(40) % 2 == 0
    targets = np.random.default_rng(0).normal(size=(50, 40))  # noise: members can't be told
    oracle = [balanced_accuracy(one, member, best_threshold(one, member)) for one in targets]
    shadows = [best_threshold(one, member) for one in np.roll(targets, 1, axis=0)]
    fair = [balanced_accuracy(one, member, t) for one, t in zip(targets, shadows, strict=True)]
    assert np.mean(fair) == pytest.approx(0.5, abs=0.03)
    assert np.mean(oracle) > 0.58


def test_balanced_accuracy_has_a_closed_form():
    scores, member = np.arange(10.0), np.arange(10) >= 8  # 8 others below 2 members
    for threshold in range(11):
        hits, left = min(2, 10 - threshold) / 2, min(8, threshold) / 8
        assert balanced_accuracy(scores, member, threshold) == (hits + left) / 2


@pytest.mark.parametrize(
    ("scores", "member", "said"),
    [
        ([0.1, 0.2], [True], r"one score per example, got \(2,\) scores for \(1,\) examples"),
        ([np.nan, 0.2, 0.3], [True, False, True], "1 of 3 scores are NaN"),
        ([0.1, 0.2], [True, True], "need positives and negatives: all examples are of one kind"),
        ([], [], "need positives and negatives"),
    ],
)
def test_what_has_no_threshold_is_refused(scores, member, said):
    values, kinds = np.array(scores, float), np.array(member, bool)
    for ask in (
        lambda: best_threshold(values, kinds),
        lambda: class_thresholds(values, kinds, np.zeros(len(values), int), 1),
        lambda: balanced_accuracy(values, kinds, 0.0),
    ):
        with pytest.raises(ValueError, match=said):
            ask()


def test_labels_and_thresholds_of_another_shape_are_refused():
    scores, member = np.arange(3.0), np.array([True, False, True])
    with pytest.raises(ValueError, match=r"one label per example, got shape \(2,\) for 3 examples"):
        class_thresholds(scores, member, np.zeros(2, int), 1)
    with pytest.raises(ValueError, match="labels must be whole numbers from 0 to 0"):
        class_thresholds(scores, member, np.arange(3), 1)
    with pytest.raises(ValueError, match=r"threshold must be a number or \(3,\) of them, got shape \(2,\)"):
        balanced_accuracy(scores, member, np.zeros(2))
    with pytest.raises(ValueError, match="threshold must be a number"):
        balanced_accuracy(scores, member, np.nan)

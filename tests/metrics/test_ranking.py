"""Average precision and the ROC curve, against scikit-learn and the slow and obvious."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from firstline.benchmark.metrics.precision import average_precision
from firstline.benchmark.metrics.ranking import ranked
from firstline.benchmark.metrics.roc import auc, roc_curve, tpr_at_fpr


@st.composite
def scored(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties or few, of either sign and size, and at least one example of each kind."""
    n = draw(st.integers(2, 40))
    values = st.integers(0, draw(st.sampled_from([0, 2, 5, 10**6]))).map(float) | st.floats(-1, 1)
    scores = draw(st.lists(values, min_size=n, max_size=n))
    positive = draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2))
    return np.array(scores), np.array([*positive, True, False])


def naive_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """For each positive, how clean what scores at least as high is."""
    return float(np.mean([positive[scores >= score].mean() for score in scores[positive]]))


@given(scored())
@settings(deadline=None)
def test_average_precision_is_the_naive_one_and_that_of_scikit_learn(example):
    scores, positive = example
    found = average_precision(scores, positive)
    assert found == pytest.approx(naive_average_precision(scores, positive), abs=1e-12)
    assert found == pytest.approx(sklearn.average_precision_score(positive, scores), abs=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_average_precision_of_equal_scores_is_the_share_of_positives(share):
    positive = np.arange(100) < 100 * share
    assert average_precision(np.full(100, 1e9), positive) == share


@pytest.mark.parametrize("positives", [1, 3, 10])
def test_average_precision_of_the_worst_order_has_a_closed_form(positives):
    positive = np.arange(20) < positives  # every negative scores above every positive
    expected = np.mean([(i + 1) / (20 - positives + i + 1) for i in range(positives)])
    assert average_precision(np.arange(20.0), positive) == pytest.approx(expected, abs=1e-15)
    assert average_precision(-np.arange(20.0), positive) == 1


@given(scored())
@settings(deadline=None)
def test_the_curve_is_that_of_scikit_learn_point_by_point(example):
    scores, positive = example
    fpr, tpr, thresholds = sklearn.roc_curve(positive, scores, drop_intermediate=False)
    found = roc_curve(scores, positive)
    assert found.fpr.tolist() == pytest.approx(fpr.tolist(), abs=1e-15)
    assert found.tpr.tolist() == pytest.approx(tpr.tolist(), abs=1e-15)
    assert found.thresholds.tolist() == thresholds.tolist()


@given(scored())
@settings(deadline=None)
def test_the_curve_holds_the_area_and_the_rates_that_are_read_off_it(example):
    scores, positive = example
    curve = roc_curve(scores, positive)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(auc(scores, positive), abs=1e-12)
    for fpr in (0.0, 0.1, 0.5):
        assert curve.tpr[curve.fpr <= fpr + 1e-12].max() == tpr_at_fpr(scores, positive, fpr)


def test_scores_that_differ_in_their_last_digit_are_two_thresholds():
    scores = np.array([1e9, np.nextafter(1e9, np.inf)])
    positive = np.array([True, False])
    assert average_precision(scores, positive) == 0.5
    assert roc_curve(scores, positive).thresholds.tolist() == [np.inf, scores[1], scores[0]]


def test_both_zeros_are_one_score_and_infinities_are_scores():
    scores = np.array([0.0, -0.0, np.inf, -np.inf])
    table = ranked(scores, np.array([True, False, True, False]))
    assert table.scores.tolist() == [-np.inf, 0.0, np.inf]
    assert table.positive.tolist() == [0, 1, 1]
    assert table.negative.tolist() == [1, 1, 0]


@pytest.mark.parametrize("ask", [average_precision, roc_curve, ranked])
@pytest.mark.parametrize(
    ("scores", "positive", "said"),
    [
        ([0.1, 0.2], [True], r"one score per example, got \(2,\) scores for \(1,\) examples"),
        ([np.nan, 0.2, np.nan], [True, False, True], "2 of 3 scores are NaN"),
        ([0.1, 0.2], [True, True], "need positives and negatives: all examples are of one kind"),
    ],
)
def test_what_can_not_be_ranked_is_refused(ask, scores, positive, said):
    with pytest.raises(ValueError, match=said):
        ask(np.array(scores), np.array(positive))


@pytest.mark.parametrize("fpr", [-0.1, 1.5, np.nan])
def test_a_rate_outside_0_and_1_is_refused(fpr):
    with pytest.raises(ValueError, match=r"the false-positive rate must lie in \[0, 1\], got"):
        tpr_at_fpr(np.arange(3.0), np.array([True, False, True]), fpr)

"""Calibration error and Brier score, against scikit-learn, the slow and obvious, and figures known in advance."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from firstline.benchmark.metrics.calibration import brier, ece


@st.composite
def answered(draw) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in steps of 1/20, so that many lie on the edge of a bin, and labels."""
    n, classes = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return rng.multinomial(20, np.ones(classes) / classes, n) / 20, rng.integers(0, classes, n)


def naive_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Sort examples into bins that hold their upper edge, and weigh the gap of each."""
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for low, high in pairwise(edges):
        here = (sure > low) & (sure <= high)
        if here.any():
            total += here.mean() * abs(right[here].mean() - sure[here].mean())
    return total


@given(answered(), st.sampled_from([1, 2, 5, 10, 15, 20]))
@settings(deadline=None)
def test_ece_is_the_naive_one_also_on_the_edges_of_bins(example, bins):
    assert ece(*example, bins=bins) == pytest.approx(naive_ece(*example, bins), abs=1e-12)


@given(answered())
@settings(deadline=None)
def test_the_brier_score_is_that_of_scikit_learn(example):
    probabilities, labels = example
    classes = list(range(probabilities.shape[1]))
    expected = brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    assert brier(probabilities, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 10])
def test_known_answers(classes):
    labels = np.arange(10 * classes) % classes
    right, wrong = np.eye(classes)[labels], np.eye(classes)[(labels + 1) % classes]
    none = np.full((labels.size, classes), 1 / classes)
    assert (ece(right, labels), brier(right, labels)) == (0, 0)
    assert (ece(wrong, labels), brier(wrong, labels)) == (1, 2)
    assert ece(none, labels) == pytest.approx(
        0, abs=1e-12
    )  # the first class is said, and is right that often
    assert brier(none, labels) == pytest.approx(1 - 1 / classes, abs=1e-12)


def test_too_sure_and_too_unsure_do_not_cancel_unless_in_one_bin():
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    labels = np.array([0] * 8 + [1] * 2 + [0] * 7 + [1] * 3)  # 0.1 too sure, and 0.1 too unsure
    assert ece(probabilities, labels) == pytest.approx(0.1, abs=1e-12)
    assert ece(probabilities, labels, bins=1) == pytest.approx(0, abs=1e-12)


def test_probabilities_of_float32_are_taken():
    scores = np.random.default_rng(0).normal(size=(50, 1000)).astype(np.float32)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    labels = np.zeros(50, np.int32)
    assert ece(probabilities, labels) == pytest.approx(
        naive_ece(probabilities.astype(float), labels, 15), abs=1e-12
    )


@pytest.mark.parametrize("measure", [ece, brier])
@pytest.mark.parametrize(
    ("probabilities", "labels", "said"),
    [
        ([0.5, 0.5], [0, 1], r"must be \(n, classes\)"),
        ([[0.5, 0.5]], [0, 1], r"one label per example, got shape \(2,\) for 1 examples"),
        ([[0.5, 0.5]], [2], "labels must be whole numbers from 0 to 1"),
        ([[0.5, 0.5]], [-1], "labels must be whole numbers from 0 to 1"),
        ([[0.5, 0.5]], [0.5], "labels must be whole numbers from 0 to 1"),
        ([[1.5, -0.5]], [0], r"must lie in \[0, 1\], got values from -0.5 to 1.5"),
        ([[0.5, 0.4]], [0], "must sum to 1: apply softmax"),
        ([[np.nan, 0.4]], [0], "1 of 2 probabilities are NaN"),
    ],
)
def test_what_is_no_answer_is_refused(measure, probabilities, labels, said):
    with pytest.raises(ValueError, match=said):
        measure(np.array(probabilities), np.array(labels))


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="at least one bin, got 0"):
        ece(np.array([[0.5, 0.5]]), np.array([0]), bins=0)

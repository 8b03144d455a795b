"""What an answer gives away, against the textbook formulas in many digits, closed forms and the slow and obvious."""

from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from firstline.benchmark.metrics.membership import (
    calibrated,
    entropies,
    losses,
    modified_entropies,
    scaled_logits,
)

getcontext().prec = 120  # enough to tell 1 - exp(-130) from 1
SIGNALS = [scaled_logits, losses, entropies, modified_entropies]


@st.composite
def answered(draw) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a few examples, ties and sure answers among them, on an offset or none, and labels."""
    n, classes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    values = st.sampled_from([0.0, 1.0, -3.0, 40.0, 100.0]) | st.floats(-30, 30)
    logits = draw(st.lists(values, min_size=n * classes, max_size=n * classes))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return np.array(logits).reshape(n, classes), np.array(labels)


def exactly(row: np.ndarray, label: int) -> dict:
    """The definitions, by probabilities that have 120 digits."""
    powers = [Decimal(float(z)).exp() for z in row]
    p = [power / sum(powers) for power in powers]
    rest = [q for i, q in enumerate(p) if i != label]
    return {
        scaled_logits: p[label].ln() - sum(rest).ln(),
        losses: -p[label].ln(),
        entropies: -sum(q * q.ln() for q in p),
        modified_entropies: -sum(rest) * p[label].ln() - sum(q * (1 - q).ln() for q in rest),
    }


@pytest.mark.parametrize("signal", SIGNALS)
@given(answered())
@settings(deadline=None, max_examples=40)
def test_a_signal_is_its_definition_in_all_its_digits(signal, example):
    logits, labels = example
    expected = [float(exactly(row, y)[signal]) for row, y in zip(logits, labels, strict=True)]
    # A scaled logit near 0 is a difference of logits, so it has their absolute accuracy; the rest is relative.
    near = 1e-12 if signal is scaled_logits else 0
    assert signal(logits, labels).tolist() == pytest.approx(expected, rel=1e-10, abs=near)


@pytest.mark.parametrize("signal", SIGNALS)
def test_an_offset_of_the_logits_changes_nothing(signal):
    logits = np.random.default_rng(0).integers(-1024, 1024, (50, 4)) / 1024  # exact beside the offset
    labels = np.arange(50) % 4
    assert signal(logits + 1e9, labels).tolist() == signal(logits, labels).tolist()


def test_the_scaled_logit_of_two_classes_is_the_difference_of_their_logits():
    logits = np.array([[3.0, 1.0], [-700.0, 700.0], [1e300, -1e300]])
    assert scaled_logits(logits, np.array([0, 0, 1])).tolist() == [2, -1400, -2e300]


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_an_undecided_answer_has_closed_forms(classes):
    logits, label = np.full((1, classes), 7.0), np.array([classes - 1])
    p = 1 / classes
    assert scaled_logits(logits, label) == pytest.approx([-np.log(classes - 1)], abs=1e-12)
    assert losses(logits, label) == pytest.approx([np.log(classes)])
    assert entropies(logits, label) == pytest.approx([entropy(np.full(classes, p))])
    expected = (1 - p) * np.log(classes) - (classes - 1) * p * np.log(1 - p)
    assert modified_entropies(logits, label) == pytest.approx([expected])


def test_modified_entropy_tells_a_sure_wrong_answer_from_a_sure_right_one():
    logits = np.array([[60.0, 0.0], [60.0, 0.0]])
    right, wrong = modified_entropies(logits, np.array([0, 1]))
    assert right < 1e-20
    assert wrong == pytest.approx(120)  # both its terms are 60
    assert len(set(entropies(logits, np.array([0, 1])))) == 1


@pytest.mark.parametrize(("signal", "most"), [(losses, 700), (entropies, 700), (modified_entropies, 350)])
def test_answers_that_are_all_1_in_float32_are_told_apart(signal, most):
    sure = np.array([20.0, 100.0, 300.0, most])
    found = signal(np.stack([sure, np.zeros(4)], axis=1), np.zeros(4, int))
    assert (np.diff(found) < 0).all()
    assert (found > 0).all()


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_stack_of_systems_is_one_after_another(signal):
    logits, labels = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32), np.arange(7) % 4
    found = signal(logits, labels)
    assert found.shape == (3, 7)
    assert found.dtype == np.float64
    assert found.tolist() == [signal(one, labels).tolist() for one in logits]


def test_calibrated_is_the_score_less_the_mean_of_those_that_never_saw_the_example():
    rng = np.random.default_rng(0)
    scores, refs, member = rng.normal(size=9), rng.normal(size=(5, 9)), rng.random((5, 9)) < 0.5
    member[0] = False
    expected = [
        scores[i] - np.mean([refs[j, i] for j in range(5) if not member[j, i]]) for i in range(len(scores))
    ]
    assert calibrated(scores, refs=refs, member=member).tolist() == pytest.approx(expected, abs=1e-14)


def test_calibrated_takes_off_what_is_hard_about_an_example():
    refs, member = np.array([[1.0, -5.0], [3.0, -7.0]]) + 2**40, np.zeros((2, 2), bool)
    assert calibrated(np.array([4.0, -4.0]) + 2**40, refs=refs, member=member).tolist() == [2, 2]


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros(3), [0, 1, 2], r"logits must be \(n, classes\) and not empty, got shape \(3,\)"),
        (np.zeros((0, 3)), [], r"logits must be \(n, classes\) and not empty"),
        (np.zeros((0, 2, 3)), [0, 1], r"logits must be \(n, classes\) and not empty"),
        (np.zeros((2, 1)), [0, 0], r"logits must be of at least 2 classes, got shape \(2, 1\)"),
        (np.zeros((2, 3)), [0], r"one label per example, got shape \(1,\) for 2 examples"),
        (np.zeros((2, 3)), [0, 3], "labels must be whole numbers from 0 to 2"),
        (np.zeros((2, 3)), [0.0, 1.0], "labels must be whole numbers from 0 to 2"),
        (np.array([[0.0, np.nan], [np.inf, 0.0]]), [0, 0], "2 of 4 logits are NaN or infinite"),
    ],
)
def test_answers_that_can_not_be_read_are_refused(signal, logits, labels, said):
    with pytest.raises(ValueError, match=said):
        signal(logits, np.array(labels))


@pytest.mark.parametrize(
    ("scores", "refs", "member", "said"),
    [
        ([1.0, 2.0], [[1.0]], [[False]], "the target has 2 examples and refs 1"),
        ([1.0], [1.0], [False], r"values of refs must be \(k, n\)"),
        ([1.0], [[1.0]], [[0]], r"member must be \(1, 1\) of True and False, got int64"),
        ([1.0], [[1.0]], [[False], [True]], r"member must be \(1, 1\) of True and False"),
        ([np.nan], [[1.0]], [[False]], "1 of 1 values of the target are NaN"),
        ([1.0], [[np.inf]], [[False]], "1 of 1 values of refs are NaN or infinite"),
        ([1.0, 1.0], [[1.0, 1.0]], [[False, True]], "all references were trained on 1 of 2 examples"),
        ([], np.zeros((1, 0)), np.zeros((1, 0), bool), "values of the target must be .* not empty"),
    ],
)
def test_references_that_do_not_fit_are_refused(scores, refs, member, said):
    with pytest.raises(ValueError, match=said):
        calibrated(np.array(scores), refs=np.array(refs), member=np.array(member))

"""Intervals over targets: the same draws, whose examples are pooled and ranked anew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.metrics.rates import clopper_pearson
from firstline.benchmark.metrics.resampling import percentiles, pick, stream
from firstline.benchmark.metrics.roc import auc, tpr_at_fpr
from firstline.benchmark.metrics.roc_intervals import auc_interval
from firstline.benchmark.metrics.target_intervals import pooled_auc, pooled_tpr

RESAMPLES = 15


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@st.composite
def scored(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores and members (targets, n), with many ties or few, and both kinds in each target."""
    shape = draw(st.integers(2, 6)), draw(st.integers(2, 12))
    values = np.random.default_rng(draw(st.integers(0, 999)))
    member = values.random(shape) < draw(st.sampled_from([0.2, 0.5]))
    member[:, 0], member[:, 1] = True, False
    return values.integers(0, draw(st.sampled_from([1, 3, 1000])), shape) / 7, values.permuted(member, axis=1)


def drawn(targets: int) -> list[np.ndarray]:
    """The targets of each resample, by the same draws as the kernel's."""
    key = stream(rng())
    return [np.array([pick(key, r * targets + t, targets) for t in range(targets)]) for r in range(RESAMPLES)]


@given(scored())
@settings(deadline=None, max_examples=40)
def test_an_auc_is_that_of_its_draws_pooled_anew(example):
    scores, member = example
    expected = [auc(scores[t].ravel(), member[t].ravel()) for t in drawn(len(scores))]
    found = pooled_auc(scores, member, rng(), RESAMPLES)
    assert found == pytest.approx(
        percentiles(auc(scores.ravel(), member.ravel()), np.array(expected)), abs=1e-15
    )


@pytest.mark.parametrize("fpr", [0.05, 0.2, 1.0])
@given(scored())
@settings(deadline=None, max_examples=40)
def test_a_tpr_is_that_of_its_draws_pooled_anew(fpr, example):
    scores, member = example
    found = pooled_tpr(scores, member, fpr, rng(), RESAMPLES)
    if fpr * (~member).sum() < 1 - 1e-9:
        assert found is None
        return
    value = tpr_at_fpr(scores.ravel(), member.ravel(), fpr)
    expected = [tpr_at_fpr(scores[t].ravel(), member[t].ravel(), fpr) for t in drawn(len(scores))]
    assert found.over_targets == percentiles(value, np.array(expected))
    assert found.exact == clopper_pearson(round(value * member.sum()), member.sum())


@pytest.mark.parametrize(("others", "resolved"), [(499, False), (500, True), (501, True)])
def test_a_rate_is_resolved_from_one_false_positive_on(others, resolved):
    member = np.arange(others + 10) < 10
    scores = np.tile(np.arange(others + 10.0), (2, 1))  # members score lowest
    found = pooled_tpr(scores, np.tile(member, (2, 1)), 0.001, rng(), 10)
    assert (found is not None) is resolved
    if found is not None:
        assert found.over_targets == (0, 0, 0)
        assert found.exact == clopper_pearson(0, 20)


def test_targets_that_differ_widen_the_interval_that_examples_would_give():
    values = np.random.default_rng(0)
    member = np.tile(np.arange(400) % 2 == 0, (10, 1))
    scores = values.normal(size=(10, 400)) + member * np.linspace(0, 4, 10)[:, None]
    narrow = auc_interval(scores.ravel(), member.ravel(), rng())
    wide = pooled_auc(scores, member, rng())
    assert wide.value == narrow.value
    assert wide.hi - wide.lo > 4 * (narrow.hi - narrow.lo)


def test_targets_that_are_copies_have_no_spread():
    values = np.random.default_rng(0)
    member = np.tile(np.arange(200) % 2 == 0, (6, 1))
    scores = np.tile(values.normal(size=200), (6, 1)) + member
    found = pooled_tpr(scores, member, 0.1, rng())
    assert len(set(found.over_targets)) == 1
    assert found.exact.lo < found.exact.value < found.exact.hi
    assert pooled_auc(scores, member, rng()) == pytest.approx([pooled_auc(scores, member, rng()).value] * 3)


def test_the_same_seed_gives_the_same_interval():
    scores, member = np.random.default_rng(0).random((5, 40)), np.tile(np.arange(40) % 2 == 0, (5, 1))
    assert pooled_auc(scores, member, rng(1)) == pooled_auc(scores, member, rng(1))
    assert pooled_auc(scores, member, rng(1)) != pooled_auc(scores, member, rng(2))


@pytest.mark.parametrize(
    ("scores", "member", "said"),
    [
        (
            np.zeros(4),
            np.zeros(4, bool),
            r"scores must be \(targets, n\) of at least 2 targets, got shape \(4,\)",
        ),
        (np.zeros((1, 4)), np.zeros((1, 4), bool), "at least 2 targets"),
        (np.zeros((2, 0)), np.zeros((2, 0), bool), "need positives and negatives"),
        (np.zeros((2, 2)), np.zeros((2, 3), bool), r"member must be \(2, 2\) of True and False"),
        (np.zeros((2, 2)), np.zeros((2, 2)), r"member must be \(2, 2\) of True and False, got float64"),
        (np.zeros((2, 2)), np.zeros((2, 2), bool), "need positives and negatives"),
        (np.full((2, 2), np.nan), np.eye(2, dtype=bool), "4 of 4 scores are NaN"),
        (np.zeros((2, 2)), np.array([[True, False], [True, True]]), "target 1 lacks one kind"),
    ],
)
def test_targets_that_can_not_be_pooled_are_refused(scores, member, said):
    with pytest.raises(ValueError, match=said):
        pooled_auc(scores, member, rng())
    with pytest.raises(ValueError, match=said):
        pooled_tpr(scores, member, 0.5, rng())


def test_rates_and_resamples_outside_their_range_are_refused():
    scores, member = np.zeros((2, 2)), np.eye(2, dtype=bool)
    with pytest.raises(ValueError, match=r"the false-positive rate must lie in \[0, 1\], got 1.5"):
        pooled_tpr(scores, member, 1.5, rng())
    with pytest.raises(ValueError, match="need at least one resample, got 0"):
        pooled_auc(scores, member, rng(), 0)

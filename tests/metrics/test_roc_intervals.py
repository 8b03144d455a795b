"""Resamples of rankings: the same draws, taken one by one and ranked anew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.metrics.resampling import percentiles, pick, stream
from firstline.benchmark.metrics.roc import auc, tpr_at_fpr
from firstline.benchmark.metrics.roc_intervals import (
    auc_difference,
    auc_interval,
    tpr_difference,
    tpr_interval,
)

RESAMPLES = 15


def rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(5))


@st.composite
def scored(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two scores per example, with many ties or few, and examples of both kinds in any order."""
    n, distinct, seed = (
        draw(st.integers(2, 30)),
        draw(st.sampled_from([1, 3, 1000])),
        draw(st.integers(0, 999)),
    )
    values = np.random.default_rng(seed)
    positive = values.permutation(np.arange(n) < draw(st.integers(1, n - 1)))
    return values.integers(0, distinct, n) / 7, values.integers(0, distinct, n) / 7, positive


def drawn(up: np.ndarray, down: np.ndarray) -> list[np.ndarray]:
    """The examples of each resample, positives first, by the same draws as the kernel's."""
    key, p, q = stream(rng()), len(up), len(down)
    return [
        np.r_[
            up[[pick(key, r * (p + q) + i, p) for i in range(p)]],
            down[[pick(key, r * (p + q) + p + j, q) for j in range(q)]],
        ]
        for r in range(RESAMPLES)
    ]


def statistic(scores: np.ndarray, positive: np.ndarray, fpr: float | None) -> float:
    return auc(scores, positive) if fpr is None else tpr_at_fpr(scores, positive, fpr)


@pytest.mark.parametrize("fpr", [None, 0.0, 0.2, 1.0])
@given(scored())
@settings(deadline=None, max_examples=40)
def test_an_interval_is_that_of_its_draws_ranked_anew(fpr, example):
    scores, _, positive = example
    kinds = np.arange(scores.size) < positive.sum()
    draws = drawn(np.sort(scores[positive]), np.sort(scores[~positive]))
    expected = np.array([statistic(values, kinds, fpr) for values in draws])
    if fpr is None:
        found = auc_interval(scores, positive, rng(), RESAMPLES)
    else:
        found = tpr_interval(scores, positive, fpr, rng(), RESAMPLES)
    assert found == percentiles(statistic(scores, positive, fpr), expected)


@pytest.mark.parametrize("fpr", [None, 0.0, 0.2, 1.0])
@given(scored())
@settings(deadline=None, max_examples=40)
def test_a_difference_is_that_of_its_draws_ranked_anew(fpr, example):
    a, b, positive = example
    kinds = np.arange(a.size) < positive.sum()
    draws = drawn(np.flatnonzero(positive), np.flatnonzero(~positive))
    expected = np.array([statistic(a[i], kinds, fpr) - statistic(b[i], kinds, fpr) for i in draws])
    if fpr is None:
        found = auc_difference(a, b, positive, rng(), RESAMPLES)
    else:
        found = tpr_difference(a, b, positive, fpr, rng(), RESAMPLES)
    value = statistic(a, positive, fpr) - statistic(b, positive, fpr)
    assert found == percentiles(value, expected)

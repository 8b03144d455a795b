"""Censored times, against the slow and obvious and SciPy's survival function."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import CensoredData, ecdf

from firstline.benchmark.metrics.survival import restricted_mean

YES = np.array([True])
RUNS = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=20)


def split(runs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(time) for time, _ in runs]), np.array([reached for _, reached in runs])


@given(RUNS, st.integers(1, 12))
@settings(deadline=None)
def test_it_is_the_area_under_the_survival_function_of_scipy(runs, horizon):
    times, reached = split(runs)
    survival = ecdf(CensoredData(uncensored=times[reached], right=times[~reached])).sf
    area = 0.0
    for unit in range(horizon):  # times are whole: the curve is flat between them
        before = survival.quantiles <= unit
        area += float(survival.probabilities[before][-1]) if before.any() else 1.0
    assert restricted_mean(times, reached, horizon=horizon) == pytest.approx(area)


@given(RUNS, st.floats(0.1, 12))
@settings(deadline=None)
def test_without_censoring_it_is_the_mean_of_times_cut_at_the_horizon(runs, horizon):
    times, _ = split(runs)
    found = restricted_mean(times, np.ones(len(times), np.bool_), horizon=horizon)
    assert found == pytest.approx(np.minimum(times, horizon).mean())


def test_where_nothing_happens_it_is_the_horizon():
    assert restricted_mean(np.array([3.0, 5.0]), np.array([False, False]), horizon=5.0) == 5


def test_runs_that_were_stopped_early_do_not_shorten_it():
    times = np.arange(1.0, 100.0)
    cut = np.minimum(times, np.where(times % 2, 100.0, 20.0))
    assert restricted_mean(cut, cut == times, horizon=100.0) == pytest.approx(50, abs=2)
    assert cut.mean() < 40


@pytest.mark.parametrize(
    ("times", "reached", "horizon", "said"),
    [
        ([1.0, 2.0], np.array([True]), 3.0, "reached must be"),
        ([1.0, 2.0], np.array([1, 0]), 3.0, "reached must be"),
        ([-1.0], YES, 3.0, "times of at least 0"),
        ([1.0], YES, 0.0, "a horizon above 0"),
        ([1.0], YES, np.inf, "a horizon above 0"),
        ([np.nan], YES, 1.0, "times are NaN"),
        ([], YES, 1.0, "times must be"),
    ],
)
def test_what_is_no_time_is_told(times, reached, horizon, said):
    with pytest.raises(ValueError, match=said):
        restricted_mean(np.array(times), reached, horizon=horizon)

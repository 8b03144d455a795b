"""Delays, drops, curves and recovery, against the slow and obvious and figures known in advance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import CensoredData, ecdf

from firstline.benchmark.metrics.detection import detection_delays, median_delay
from firstline.benchmark.metrics.resilience import (
    drop,
    held_share,
    recovered_share,
    recovery_loss,
    recovery_time,
    security_area,
)

SHARES = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])
SERIES = st.lists(SHARES, min_size=1, max_size=20).map(np.array)


@st.composite
def monitored(draw) -> tuple[np.ndarray, np.ndarray]:
    n, length = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    alarms = draw(arrays(np.bool_, (n, length)))
    return alarms, np.array(draw(st.lists(st.integers(0, length), min_size=n, max_size=n)))


@given(monitored())
@settings(deadline=None)
def test_delays_are_the_naive_ones(example):
    alarms, changes = example
    found = detection_delays(alarms, changes)
    for i, (run, change) in enumerate(zip(alarms.tolist(), changes.tolist(), strict=True)):
        after = run[change:]
        assert found.detected[i] == any(after)
        assert found.steps[i] == (after.index(True) if any(after) else len(after))
        assert found.false_alarms[i] == sum(run[:change])


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=25))
@settings(deadline=None)
def test_the_median_delay_is_that_of_the_survival_function_of_scipy(runs):
    steps, detected = np.array([r[0] for r in runs]), np.array([r[1] for r in runs])
    expected = np.inf
    if detected.any():
        survival = ecdf(CensoredData(uncensored=steps[detected], right=steps[~detected])).sf
        reached = survival.quantiles[survival.probabilities <= 0.5 + 1e-12]
        expected = reached.min() if reached.size else np.inf
    assert median_delay(steps, detected) == expected


def test_runs_that_end_early_do_not_shorten_the_median():
    delays = np.arange(1, 100)
    cut = np.minimum(delays, np.where(delays % 2, 100, 20))  # every other run ends at 20
    assert median_delay(cut, delays == cut) == pytest.approx(50, abs=2)
    assert np.median(cut) < 35


def test_a_drop_is_the_difference_of_shares_and_may_be_a_gain():
    assert drop(0.9, 0.3) == pytest.approx(0.6, abs=1e-15)
    assert drop(0.25, 0.5) == -0.25


def test_held_attacks_are_counted_only_where_there_was_something_to_break():
    clean, held = np.random.default_rng(0).random(50) < 0.7, np.random.default_rng(1).random((4, 50)) < 0.4
    attempts = [held[a, i] for a in range(4) for i in range(50) if clean[i]]
    assert held_share(clean, held) == sum(attempts) / len(attempts)
    assert held_share(clean, np.ones((2, 50), bool)) == 1
    assert held_share(clean, np.tile(~clean, (2, 1))) == 0


@given(st.lists(st.tuples(st.floats(0.001, 10), SHARES), min_size=2, max_size=20))
@settings(deadline=None)
def test_the_area_under_a_security_curve_is_the_trapezoids_by_the_width(points):
    eps, accuracy = np.cumsum([p[0] for p in points]), np.array([p[1] for p in points])
    found = security_area(eps, accuracy)
    assert found == pytest.approx(np.trapezoid(accuracy, eps) / np.ptp(eps), abs=1e-9)
    assert security_area(255 * eps, accuracy) == pytest.approx(found, abs=1e-9)
    assert accuracy.min() - 1e-12 <= found <= accuracy.max() + 1e-12


def naive_recovery_time(service: list[float], floor: float) -> float:
    """The first step from which on every value is back."""
    back = [t for t in range(len(service)) if all(value >= floor for value in service[t:])]
    return float(min(back)) if back else np.inf


@given(SERIES, SHARES, st.sampled_from([0.0, 0.01, 0.3]))
@settings(deadline=None)
def test_recovery_time_is_the_naive_one(service, baseline, tolerance):
    found = recovery_time(service, baseline=baseline, tolerance=tolerance)
    assert found == naive_recovery_time(service.tolist(), baseline - tolerance)


def test_a_recovery_that_does_not_last_is_none():
    assert recovery_time(np.array([0.1, 0.9, 0.9, 0.5]), baseline=0.9) == np.inf
    assert recovery_time(np.array([0.9, 0.9]), baseline=0.9) == 0


@pytest.mark.parametrize(
    ("service", "share"),
    [([1, 0, 1], 1), ([1, 0, 0], 0), ([0, 0.25], 0.25), ([1, 1], 1), ([0.5, 2], 1), ([0.5], 0), ([2, 3], 1)],
)
def test_the_recovered_share_of_known_series(service, share):
    assert recovered_share(np.array(service, float), baseline=1) == pytest.approx(share, abs=1e-15)


@given(SERIES, st.floats(0.1, 1))
@settings(deadline=None)
def test_the_recovered_share_is_one_and_does_not_see_offset_and_unit(service, baseline):
    found = recovered_share(service, baseline=baseline)
    assert 0 <= found <= 1
    if service.min() < baseline - 1e-3:
        assert recovered_share(64 * service + 8, baseline=64 * baseline + 8) == pytest.approx(found, abs=1e-9)


@given(st.lists(SHARES, min_size=2, max_size=8), SHARES)
@settings(deadline=None, max_examples=50)
def test_the_recovery_loss_is_that_of_a_fine_sum(service, baseline):
    times = np.cumsum(1.0 + np.arange(len(service)) % 3)
    fine = np.linspace(times[0], times[-1], 20_001)
    short = np.maximum(0, baseline - np.interp(fine, times, service))
    found = recovery_loss(times, np.array(service), baseline=baseline)
    assert found == pytest.approx(short.mean(), abs=1e-3)
    assert found >= 0


def test_the_recovery_loss_of_a_line_through_the_baseline_is_a_triangle():
    found = recovery_loss(np.array([0.0, 4.0]), np.array([0.0, 2.0]), baseline=0.5)
    assert found == pytest.approx(0.5 * 1.0 * 0.5 / 4, abs=1e-15)
    assert recovery_loss(np.array([0.0, 4.0]), np.array([0.6, 2.0]), baseline=0.5) == 0
    assert recovery_loss(np.array([0.0, 4.0]), np.array([0.2, 0.2]), baseline=0.5) == pytest.approx(0.3)


YES = np.ones(3, bool)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: detection_delays(YES, np.array([0])), r"alarms must be \(n, t\) of True and False, got bool \(3,\)"),
        (lambda: detection_delays(np.ones((1, 3)), np.array([0])), "True and False, got float64"),
        (lambda: detection_delays(YES[None], np.array([0, 1])), r"one step per run, \(1,\), got int64 \(2,\)"),
        (lambda: detection_delays(YES[None], np.array([0.5])), "one step per run"),
        (lambda: detection_delays(YES[None], np.array([4])), r"a change must lie in \[0, 3\], got 4 to 4"),
        (lambda: detection_delays(YES[None], np.array([-1])), r"a change must lie in \[0, 3\], got -1"),
        (lambda: median_delay(np.array([1, 2]), YES), r"got shapes \(2,\) and \(3,\)"),
        (lambda: median_delay(np.array([1, -2, 3]), YES), "at least 0 steps, got -2"),
        (lambda: drop(1.2, 0.5), r"accuracies must lie in \[0, 1\], got values from 0.5 to 1.2"),
        (lambda: drop(np.nan, 0.5), "1 of 2 accuracies are NaN"),
        (lambda: held_share(YES, YES), r"got shapes \(3,\) and \(3,\)"),
        (lambda: held_share(YES, np.ones((2, 3))), "must say True or False, got bool and float64"),
        (lambda: held_share(~YES, YES[None]), "no example is right when clean"),
        (lambda: security_area(np.array([0.0]), np.array([1.0])), "need at least two eps"),
        (lambda: security_area(np.array([0.0, 0.0]), np.ones(2)), "each larger than the one before"),
        (lambda: security_area(np.arange(2.0), np.array([50.0, 90.0])), r"must lie in \[0, 1\]"),
        (lambda: security_area(np.arange(2.0), np.ones(3)), "eps and accuracies must have one shape"),
        (lambda: recovery_time(np.array([]), baseline=1), "not empty"),
        (lambda: recovery_time(np.array([np.nan]), baseline=1), "1 of 1 values of service are NaN"),
        (lambda: recovery_time(np.ones(2), baseline=np.nan), "need a baseline and a tolerance"),
        (lambda: recovery_time(np.ones(2), baseline=1, tolerance=-0.1), "tolerance of at least 0, got 1 and -0.1"),
        (lambda: recovered_share(np.ones((2, 2)), baseline=1), r"must be \(t\)"),
        (lambda: recovered_share(np.ones(2), baseline=np.inf), "the baseline must be finite"),
        (lambda: recovery_loss(np.arange(2.0), np.ones(2), baseline=np.nan), "the baseline must be finite"),
        (lambda: recovery_loss(np.array([1.0, 0.0]), np.ones(2), baseline=1), "need at least two times"),
    ],
)  # fmt: skip
def test_what_can_not_be_measured_is_refused(ask, said):
    with pytest.raises(ValueError, match=said):
        ask()

"""Streams of windows in closed form: steps down and up, relapses, alarms early, late and never."""

from functools import partial

import numpy as np
import pytest

from firstline.benchmark.core.stream_record import Window
from firstline.benchmark.metrics import stream as protocol
from firstline.benchmark.metrics.stream import alarm, oracle, summary

course = partial(protocol.course, lasting=1)  # the streams here are short

ATTACKED = (False, False, True, True, True, False)


def window(attacked: bool, right: int, *, usual: int = 10, raised: bool = False) -> Window:
    """A window of ten inputs, of which so many are answered as they should be."""
    return Window(attacked=attacked, inputs=10, right=right, usual=usual, alarm=raised)


def stream(*right: int, alarms: tuple[int, ...] = (), attacked: tuple[bool, ...] = ATTACKED) -> list[Window]:
    assert len(right) == len(attacked)
    return [window(a, n, raised=i in alarms) for i, (a, n) in enumerate(zip(attacked, right, strict=True))]


def test_a_step_down_and_up():
    found = course(stream(10, 10, 5, 5, 10, 10, alarms=(3,)))
    assert found.drop == 0.5
    assert (found.detected, found.delay, found.inputs) == (True, 1, 20)
    assert (found.recovered, found.recovery) == (True, 2)
    assert found.loss == pytest.approx((0.25 + 0.5 + 0.25) / 4)  # lines between five windows
    assert (found.false_alarms, found.calm) == (0, 3)
    assert found.service == (1, 1, 0.5, 0.5, 1, 1)


def test_what_never_recovers_is_censored_at_the_end():
    found = course(stream(10, 10, 5, 5, 5, 5))
    assert (found.recovered, found.recovery, found.horizon) == (False, 4, 4)
    assert (found.detected, found.delay, found.inputs) == (False, 3, 30)
    assert found.loss == pytest.approx((0.25 + 3 * 0.5) / 4)


def test_a_relapse_puts_the_recovery_off():
    assert course(stream(10, 10, 5, 10, 5, 10)).recovery == 3
    assert not course(stream(10, 10, 5, 10, 10, 5)).recovered


def test_what_is_back_too_late_to_last_is_censored():
    late = stream(10, 10, 5, 5, 10, 10)
    assert protocol.course(late, lasting=2).recovery == 2
    found = protocol.course(late, lasting=3)
    assert (found.recovered, found.recovery) == (False, 4)


def test_what_never_leaves_has_recovered_at_once_and_lost_nothing():
    found = course(stream(10, 10, 10, 10, 10, 10))
    assert (found.drop, found.recovered, found.recovery, found.loss) == (0, True, 0, 0)


def test_back_is_within_the_tolerance_of_what_is_usual_on_the_same_inputs():
    hard = [
        window(a, n, usual=u)
        for a, n, u in zip(ATTACKED, (6, 9, 5, 5, 5, 8), (6, 9, 6, 6, 6, 9), strict=True)
    ]
    assert course(hard).recovery == 0
    assert course(hard, tolerance=0.09).recovered is False


def test_alarms_before_and_after_the_attack_are_false_and_detect_nothing():
    found = course(stream(10, 10, 5, 5, 5, 10, alarms=(0, 5)))
    assert (found.detected, found.false_alarms) == (False, 2)
    assert course(stream(10, 10, 5, 5, 5, 10, alarms=(2,))).delay == 0


@pytest.mark.parametrize("attacked", [(True, True), (False, False), (False, True, False, True)])
def test_a_stream_has_one_attack_and_a_window_before_it(attacked):
    with pytest.raises(ValueError, match="one unbroken run"):
        course(stream(*[10] * len(attacked), attacked=attacked))


def test_the_oracle_loses_the_first_window_and_no_more():
    found = course(oracle(stream(10, 10, 5, 5, 5, 7, alarms=(1,))))
    assert (found.detected, found.delay, found.false_alarms) == (True, 0, 0)
    assert (found.recovered, found.recovery) == (True, 1)
    assert found.loss == pytest.approx(0.5 / 4)


def test_seeds_are_summed_up_with_those_that_never_recovered():
    found = summary([course(stream(10, 10, 5, 5, 10, 10, alarms=(2,))), course(stream(10, 10, 5, 5, 5, 5))])
    assert found.recovery == 3  # (2 + 4) / 2
    assert (found.recovered.value, found.detected.value) == (0.5, 0.5)
    assert found.recovered.lo == pytest.approx(0.0945, abs=1e-4)  # Wilson's, 1 of 2
    assert found.delay == 1.5
    assert found.service == (1, 1, 0.5, 0.5, 0.75, 0.75)


def test_the_alarm_keeps_its_false_positive_rate_on_honest_windows():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(4):  # the calibration rows themselves are a draw
        raised = alarm(rng.normal(size=400), 20, 0.1, rng)
        rates.append(np.mean([raised(rng.normal(size=20)) for _ in range(300)]))
    assert 0.06 < np.mean(rates) < 0.15


def test_the_alarm_sees_half_a_window_of_suspects_in_any_scale():
    rng = np.random.default_rng(1)
    honest, half = rng.normal(size=200), np.arange(20) % 2 == 0
    for scale in (np.asarray, np.exp):
        raised = alarm(scale(honest), 20, 0.01, np.random.default_rng(2))
        assert raised(np.where(half, np.inf, scale(rng.normal(size=20))))
        assert not raised(scale(honest[:20]))


def test_a_monitor_that_says_nothing_raises_no_alarm():
    raised = alarm(np.zeros(100), 10, 0.05, np.random.default_rng(0))
    assert not raised(np.zeros(10))
    assert raised(np.where(np.arange(10) < 1, np.inf, 0.0))


@pytest.mark.parametrize(("size", "fpr"), [(100, 0.01), (0, 0.01), (10, 1.0), (10, -0.1)])
def test_an_alarm_needs_honest_rows_and_a_rate(size, fpr):
    with pytest.raises(ValueError, match="rate below 1"):
        alarm(np.zeros(100), size, fpr, np.random.default_rng(0))

"""A system in service, window by window: what an attack costs, when it is noticed, and when service is back.

Sources: recovery once it lasts and the area of lost service are Bruneau et al. 2003, Earthquake Spectra 19; delays
are censored as in Basseville & Nikiforov 1993; the alarm is the rank test of Mann & Whitney 1947, Annals of
Mathematical Statistics 18, at a false-alarm rate that all monitors share.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from firstline.benchmark.metrics.checks import Bools, Floats
from firstline.benchmark.metrics.detection import detection_delays
from firstline.benchmark.metrics.rates import Interval, wilson
from firstline.benchmark.metrics.resilience import drop, recovery_loss, recovery_time
from firstline.benchmark.metrics.roc import auc
from firstline.benchmark.metrics.survival import restricted_mean

TOLERANCE = 0.1  # of accuracy below the usual: back in service; two inputs of a window of 25
LASTING = 3  # windows to the end that are back in service: one or two may be chance
RESAMPLES = 1000  # windows of honest traffic that the alarm is set on
ROUNDING = 1e-9


class Window(NamedTuple):
    """One window: was it attacked, what was served (n,), what is served on it without the attack (n,), an alarm?

    right says of each input whether the answer was as it should be; usual says the same of the system that nobody
    attacked, on the same inputs, so that hard inputs are no loss.
    """

    attacked: bool
    right: Bools
    usual: Bools
    alarm: bool


@dataclass(frozen=True)
class Course:
    """What one stream went through. Times are in windows, from the first attacked one.

    drop is the accuracy lost in that window, loss the mean from there to the end, back to where service is usual.
    delay and recovery are how long it went on where detected or recovered is False: nobody knows how much longer.
    inputs are those served up to and with the alarm. calm is the number of windows without an attack.
    """

    drop: float
    detected: bool
    delay: int
    inputs: int
    false_alarms: int
    calm: int
    recovered: bool
    recovery: int
    loss: float
    horizon: int
    service: tuple[float, ...]


class Summary(NamedTuple):
    """Streams over seeds: means, and restricted means of times, of which those that never ended are censored."""

    drop: float
    detected: Interval
    delay: float
    inputs: float
    false_alarms: int
    calm: int
    recovered: Interval
    recovery: float
    loss: float
    service: tuple[float, ...]


def alarm(calibration: Floats, size: int, fpr: float, rng: np.random.Generator) -> Callable[[Floats], bool]:
    """Return what says whether a window's suspicions (size,) are higher than honest ones, at most fpr of the time.

    calibration (m,) are suspicions of honest inputs, above size of them, none NaN; no attacked window is looked at.
    A window gives an alarm where the chance that one of its inputs is more suspect than one of calibration is
    higher than in all but a share fpr of windows drawn from calibration itself. Raises ValueError where there are
    too few rows, or fpr is no share.
    """
    if not 0 < size < len(calibration) or not 0 <= fpr < 1:
        raise ValueError(
            f"need a rate below 1 and more calibration rows than a window has, got {fpr}, "
            f"{len(calibration)} rows and windows of {size}"
        )
    drawn = np.zeros(len(calibration), np.bool_)
    drawn[:size] = True
    ranks = np.sort([auc(calibration, rng.permutation(drawn)) for _ in range(RESAMPLES)])
    limit = ranks[RESAMPLES - 1 - int(fpr * RESAMPLES)]
    new = np.arange(len(calibration) + size) >= len(calibration)

    def raised(suspicion: Floats) -> bool:
        return bool(auc(np.concatenate([calibration, suspicion]), new) > limit + ROUNDING)

    return raised


def course(windows: Sequence[Window], tolerance: float = TOLERANCE, lasting: int = LASTING) -> Course:
    """Return what a stream went through, in which one run of windows is attacked.

    Service is back at the first window from which it stays within tolerance of the usual to the end, if that is at
    least `lasting` windows. An alarm in that run detects the attack, every other one is false. Raises ValueError
    where no window comes before the run, or there is none, or more than one.
    """
    attacked = np.array([window.attacked for window in windows], np.bool_)
    places = attacked.nonzero()[0]
    if len(places) == 0 or places[0] == 0 or not attacked[places[0] : places[-1] + 1].all():
        raise ValueError("need one unbroken run of attacked windows, and at least one window before it")
    start, end = int(places[0]), int(places[-1]) + 1
    alarms = np.array([window.alarm for window in windows], np.bool_)
    found = detection_delays(alarms[None, :end], np.array([start]))
    detected, delay = bool(found.detected[0]), int(found.steps[0])
    lacking = np.array([window.right.mean() - window.usual.mean() for window in windows])
    back = recovery_time(lacking[start:], baseline=0.0, tolerance=tolerance + ROUNDING)
    horizon = len(windows) - start
    recovered = back + lasting <= horizon
    first = windows[start]
    return Course(
        drop=drop(float(first.usual.mean()), float(first.right.mean())),
        detected=detected,
        delay=delay,
        inputs=sum(len(window.right) for window in windows[start : start + delay + detected]),
        false_alarms=int(found.false_alarms[0] + alarms[end:].sum()),
        calm=int((~attacked).sum()),
        recovered=recovered,
        recovery=int(back) if recovered else horizon,
        loss=recovery_loss(np.arange(horizon + 1), lacking[start - 1 :], baseline=0.0),
        horizon=horizon,
        service=tuple(float(window.right.mean()) for window in windows),
    )


def oracle(windows: Sequence[Window]) -> list[Window]:
    """Return the stream of a defender who knows: an alarm in the first attacked window, and then all as usual."""
    first = next(i for i, window in enumerate(windows) if window.attacked)
    return [
        window._replace(alarm=i == first, right=window.right if i <= first else window.usual)
        for i, window in enumerate(windows)
    ]


def summary(courses: Sequence[Course]) -> Summary:
    """Return what streams of one shape have in common; shares have Wilson's interval."""
    n = len(courses)

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    def restricted(times: Sequence[int], ended: Sequence[bool]) -> float:
        return restricted_mean(np.array(times), np.array(ended), horizon=float(max(1, *times)))

    detected, recovered = [one.detected for one in courses], [one.recovered for one in courses]
    return Summary(
        drop=mean([one.drop for one in courses]),
        detected=wilson(sum(detected), n),
        delay=restricted([one.delay for one in courses], detected),
        inputs=restricted([one.inputs for one in courses], detected),
        false_alarms=sum(one.false_alarms for one in courses),
        calm=sum(one.calm for one in courses),
        recovered=wilson(sum(recovered), n),
        recovery=restricted([one.recovery for one in courses], recovered),
        loss=mean([one.loss for one in courses]),
        service=tuple(map(mean, zip(*(one.service for one in courses), strict=True))),
    )

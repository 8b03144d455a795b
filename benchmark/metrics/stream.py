"""A system in service, window by window: what an attack costs, when it is noticed, and when service is back.

Sources: recovery once it lasts and the area of lost service are Bruneau et al. 2003, Earthquake Spectra 19; delays
are censored as in Basseville & Nikiforov 1993; the alarm is the rank test of Mann & Whitney 1947, Annals of
Mathematical Statistics 18, at a false-alarm rate that all monitors share.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import numpy as np

from firstline.benchmark.core.stream_record import StreamRecord, Window
from firstline.benchmark.metrics.checks import Floats
from firstline.benchmark.metrics.detection import detection_delays
from firstline.benchmark.metrics.rates import Interval, wilson
from firstline.benchmark.metrics.resilience import drop, recovery_loss, recovery_time
from firstline.benchmark.metrics.roc import auc
from firstline.benchmark.metrics.survival import restricted_mean

TOLERANCE = 0.1  # of accuracy below the usual: back in service; two inputs of a window of 25
LASTING = 3  # windows to the end that are back in service: one or two may be chance
RESAMPLES = 1000  # windows of honest traffic that the alarm is set on
ROUNDING = 1e-9
NOTHING, ORACLE = "none", "instant oracle"


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


@dataclass(frozen=True)
class Run:
    """One stream: its course, and the steps, clean rows and CPU seconds of its repairs.

    relapse, and relapse_without_repair, are there for backdoors that were repaired.
    """

    defense: str
    seed: int
    course: Course
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    relapse: float | None = None
    relapse_without_repair: float | None = None


@dataclass(frozen=True)
class Line:
    """A defense over seeds: its summary, the means of what repairs took, and of what comes back where all repaired."""

    defense: str
    seeds: int
    summary: Summary
    steps: float
    samples: float
    seconds: float
    relapse: float | None

    @property
    def unseen(self) -> int:
        """In how many seeds no alarm detected the attack: their delays are censored."""
        return self.seeds - round(self.summary.detected.value * self.seeds)

    @property
    def lost(self) -> int:
        """In how many seeds service did not come back: their recoveries are censored."""
        return self.seeds - round(self.summary.recovered.value * self.seeds)


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
    right = [window.right / window.inputs for window in windows]
    usual = [window.usual / window.inputs for window in windows]
    lacking = np.array(right) - np.array(usual)
    back = recovery_time(lacking[start:], baseline=0.0, tolerance=tolerance + ROUNDING)
    horizon = len(windows) - start
    recovered = back + lasting <= horizon
    return Course(
        drop=drop(usual[start], right[start]),
        detected=detected,
        delay=delay,
        inputs=sum(window.inputs for window in windows[start : start + delay + detected]),
        false_alarms=int(found.false_alarms[0] + alarms[end:].sum()),
        calm=int((~attacked).sum()),
        recovered=recovered,
        recovery=int(back) if recovered else horizon,
        loss=recovery_loss(np.arange(horizon + 1), lacking[start - 1 :], baseline=0.0),
        horizon=horizon,
        service=tuple(right),
    )


def oracle(windows: Sequence[Window]) -> list[Window]:
    """Return the stream of a defender who knows: an alarm in the first attacked window, and then all as usual."""
    first = next(i for i, window in enumerate(windows) if window.attacked)
    return [
        window.model_copy(update={"alarm": i == first, "right": window.right if i <= first else window.usual})
        for i, window in enumerate(windows)
    ]


def summary(courses: Sequence[Course]) -> Summary:
    """Return what streams of one shape have in common; shares have Wilson's interval."""
    n = len(courses)

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


def runs(records: Iterable[StreamRecord]) -> list[Run]:
    """Return the run of each record, and that of the instant oracle after each of `none`.

    The oracle is what `none` is up to the first attacked window, and then what it is without the attack.
    """
    found: list[Run] = []
    for one in records:
        took = (one.steps, one.samples, one.seconds, one.relapse, one.relapse_without_repair)
        found.append(Run(one.defense_text, one.seed, course(one.windows), *took))
        if one.defense_text == NOTHING:
            found.append(Run(ORACLE, one.seed, course(oracle(one.windows))))
    return found


def lines(runs: Sequence[Run]) -> list[Line]:
    """Return a line per defense, in the order of the runs."""
    return [
        _line(name, [run for run in runs if run.defense == name])
        for name in dict.fromkeys(r.defense for r in runs)
    ]


def _line(name: str, runs: Sequence[Run]) -> Line:
    again = [run.relapse for run in runs if run.relapse is not None]
    return Line(
        defense=name,
        seeds=len(runs),
        summary=summary([run.course for run in runs]),
        steps=mean(run.steps for run in runs),
        samples=mean(run.samples for run in runs),
        seconds=mean(run.seconds for run in runs),
        relapse=mean(again) if len(again) == len(runs) else None,
    )

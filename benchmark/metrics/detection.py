"""How long it takes a monitor to notice: delays from a change to the first alarm, censored where a run ends."""

from typing import NamedTuple

import numpy as np
from numba import njit

from firstline.benchmark.metrics.checks import Bools, Ints


class Delays(NamedTuple):
    """Per run (n,): steps from the change to the alarm, or to the end; whether there was one; false alarms."""

    steps: Ints
    detected: Bools
    false_alarms: Ints


@njit(cache=True)
def _delays(alarms: Bools, changes: Ints, steps: Ints, detected: Bools, early: Ints) -> None:
    length = alarms.shape[1]
    for i in range(len(alarms)):
        for t in range(changes[i]):
            early[i] += alarms[i, t]
        t = changes[i]
        while t < length and not alarms[i, t]:
            t += 1
        steps[i] = t - changes[i]
        detected[i] = t < length


@njit(cache=True)
def _median(steps: Ints, detected: Bools) -> float:
    """Kaplan and Meier's median of steps, which are sorted, alarms before ends where both fall on one step."""
    n = steps.size
    unseen, i = 1.0, 0
    while i < n:
        at, alarms, first = steps[i], 0, i
        while i < n and steps[i] == at:
            alarms += detected[i]
            i += 1
        unseen *= 1 - alarms / (n - first)
        if unseen <= 0.5 + 1e-12:  # the product of shares that make one half may be rounded up
            return float(at)
    return np.inf


def detection_delays(alarms: Bools, changes: Ints) -> Delays:
    """Return how many steps each run went on unnoticed after its change; lower is better.

    alarms is (n, t): whether the monitor gives an alarm at each step (a query, a batch, a second) of each run.
    changes (n,) holds the step, from 0, at which each run changes, such as the first query of an attack; t means
    never. An alarm at that very step is a delay of 0. A run that ends without an alarm is censored: its delay is
    known to be at least the steps it lasted, and detected is False. Alarms before the change are false alarms:
    they are counted and detect nothing. Raises ValueError for other shapes and for changes outside [0, t].
    Source: Basseville & Nikiforov 1993, Detection of Abrupt Changes.

    >>> alarms = np.array([[True, False, False, True], [False, False, False, False]])
    >>> delays = detection_delays(alarms, np.array([1, 1]))
    >>> delays.steps.tolist(), delays.detected.tolist(), delays.false_alarms.tolist()
    ([2, 3], [True, False], [1, 0])
    """
    if alarms.ndim != 2 or alarms.size == 0 or alarms.dtype != np.bool_:
        raise ValueError(f"alarms must be (n, t) of True and False, got {alarms.dtype} {alarms.shape}")
    n, length = alarms.shape
    if changes.shape != (n,) or changes.dtype.kind not in "iu":
        raise ValueError(f"changes must be one step per run, ({n},), got {changes.dtype} {changes.shape}")
    if changes.min() < 0 or changes.max() > length:
        raise ValueError(f"a change must lie in [0, {length}], got {changes.min()} to {changes.max()}")
    delays = Delays(np.empty(n, np.int64), np.empty(n, np.bool_), np.zeros(n, np.int64))
    _delays(np.ascontiguousarray(alarms), changes.astype(np.int64, copy=False), *delays)
    return delays


def median_delay(steps: Ints, detected: Bools) -> float:
    """Return the delay within which half of all changes are noticed, in steps; lower is better.

    steps and detected (n,) are those of detection_delays. Runs without an alarm count for as long as they lasted
    and are not taken for delays, which would be too short. Infinity where half was never reached. Raises
    ValueError for other shapes and negative steps. Source: Kaplan & Meier 1958, JASA 53, the product limit.

    >>> median_delay(np.array([3, 5, 9]), np.array([True, True, False]))
    5.0
    >>> median_delay(np.array([3, 5, 5]), np.array([True, False, False]))
    inf
    """
    if steps.ndim != 1 or steps.size == 0 or steps.shape != detected.shape:
        raise ValueError(f"need steps and detected per run, got shapes {steps.shape} and {detected.shape}")
    if steps.min() < 0:
        raise ValueError(f"delays must be at least 0 steps, got {steps.min()}")
    order = np.argsort(steps, kind="stable")
    return float(_median(steps[order], detected[order]))

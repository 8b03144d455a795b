"""What an attack costs and what comes back: drops, held attacks, security curves, recovery."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Bools, Floats, floats, same_shape, within


@njit(cache=True)
def _recovery_step(service: Floats, floor: float) -> int:
    step = service.size
    while step > 0 and service[step - 1] >= floor:
        step -= 1
    return step


@njit(cache=True)
def _area(x: Floats, y: Floats) -> float:
    """The area under the straight lines between points, by the width of x."""
    total = 0.0
    for i in range(1, x.size):
        total += (x[i] - x[i - 1]) * (y[i] + y[i - 1])
    return float(total / 2 / (x[-1] - x[0]))


@njit(cache=True)
def _loss(times: Floats, service: Floats, baseline: float) -> float:
    """The area between baseline and the straight lines between points, where these are below, by the width."""
    total = 0.0
    for i in range(1, times.size):
        width = times[i] - times[i - 1]
        a, b = baseline - service[i - 1], baseline - service[i]
        if a >= 0 and b >= 0:
            total += width * (a + b) / 2
        elif a > 0 or b > 0:  # the line crosses baseline: a triangle is left
            most = max(a, b)
            total += width * most * most / (2 * (most - min(a, b)))
    return float(total / (times[-1] - times[0]))


def drop(clean: float, attacked: float) -> float:
    """Return clean - attacked, the points of accuracy that the attack costs, in [-1, 1]; lower is better.

    Both are shares in [0, 1]. Below 0, the system does better under attack. Two systems on the same examples have
    an interval by paired.mean_difference. Raises ValueError for what is no share.

    >>> drop(0.75, 0.5)
    0.25
    """
    within("accuracies", floats("accuracies", np.array([clean, attacked]), "n"), 0, 1)
    return clean - attacked


def held_share(clean: Bools, held: Bools) -> float:
    """Return the share of attacks that failed, of all that could succeed, in [0, 1]; higher is better.

    clean is (n,): whether the system is right about each example before any attack; held (attacks, n): whether it
    is right under each of them. An example that is wrong already is no attack. Unlike the worst case per example,
    it says how often a single attempt is warded off. Raises ValueError for other shapes, and where no example is
    right when clean.

    >>> held_share(np.array([True, True, False]), np.array([[True, False, False], [True, True, True]]))
    0.75
    """
    if clean.ndim != 1 or held.ndim != 2 or held.shape[1:] != clean.shape or held.size == 0:
        raise ValueError(f"need clean (n,) and held (attacks, n), got shapes {clean.shape} and {held.shape}")
    if clean.dtype != np.bool_ or held.dtype != np.bool_:
        raise ValueError(f"clean and held must say True or False, got {clean.dtype} and {held.dtype}")
    if not clean.any():
        raise ValueError("no example is right when clean: there is nothing that an attack could break")
    return float(held[:, clean].mean())


def security_area(eps: NDArray[Any], accuracy: NDArray[Any]) -> float:
    """Return the area under a security curve by its width: the mean accuracy over radii, in [0, 1]; higher is better.

    eps is (m,), at least two radii that rise, in any unit; accuracy (m,) the share that stands at each. Straight
    lines lie between the points. Raises ValueError for other shapes, radii that don't rise and what is no share.
    Source: Biggio & Roli 2018, arXiv:1712.03141 (security evaluation curves); the trapezoidal rule.

    >>> security_area(np.array([0.0, 0.25, 1.0]), np.array([1.0, 0.5, 0.0]))
    0.375
    """
    x, y = _rising("eps", eps, "accuracies", accuracy)
    within("accuracies", y, 0, 1)
    return float(_area(x, y))


def recovery_time(service: NDArray[Any], *, baseline: float, tolerance: float = 0.01) -> float:
    """Return the steps from onset until service is back for good; lower is better.

    service is (t,), one value per step from the attack's onset, such as accuracy, higher being better. Back means
    at least baseline - tolerance at that step and at every later one. 0 says that it never left, and infinity
    that it never came back. Raises ValueError for other shapes, values that aren't finite and a tolerance below 0.
    Source: Bruneau et al. 2003, Earthquake Spectra 19 (rapidity).

    >>> recovery_time(np.array([0.9, 0.4, 0.9, 0.5, 0.9, 0.9]), baseline=0.9)
    4.0
    """
    if not (np.isfinite(baseline) and 0 <= tolerance < np.inf):
        raise ValueError(f"need a baseline and a tolerance of at least 0, got {baseline} and {tolerance}")
    values = floats("values of service", service, "t")
    step = _recovery_step(values, baseline - tolerance)
    return float(step) if step < values.size else float("inf")


def recovered_share(service: NDArray[Any], *, baseline: float) -> float:
    """Return how much of what was lost at worst is back at the end, in [0, 1]; higher is better.

    service is (t,) from the attack's onset, as in recovery_time: (end - worst) / (baseline - worst), 1 where it
    never fell below baseline and where it ends above. Raises ValueError for other shapes and values that aren't
    finite. Source: Bruneau et al. 2003, Earthquake Spectra 19 (robustness is what the worst leaves).

    >>> recovered_share(np.array([0.5, 0.0, 0.25, 0.75]), baseline=1.0)
    0.75
    """
    values = floats("values of service", service, "t")
    if not np.isfinite(baseline):
        raise ValueError(f"the baseline must be finite, got {baseline}")
    lost = baseline - float(values.min())
    return 1.0 if lost <= 0 else min(1.0, (lost - (baseline - float(values[-1]))) / lost)


def recovery_loss(times: NDArray[Any], service: NDArray[Any], *, baseline: float) -> float:
    """Return the mean shortfall of service below baseline over time, in its unit, at least 0; lower is better.

    times is (t,), at least two moments that rise, in any unit; service (t,) its value at each, straight lines
    between. What lies above baseline makes up for nothing. Multiplied by the time that passed it is the area
    lost under the recovery curve. Raises ValueError for other shapes, times that don't rise and values that
    aren't finite. Source: Bruneau et al. 2003, Earthquake Spectra 19 (loss of resilience), by its length.

    >>> recovery_loss(np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.0, 1.0]), baseline=1.0)
    0.5
    """
    if not np.isfinite(baseline):
        raise ValueError(f"the baseline must be finite, got {baseline}")
    return float(_loss(*_rising("times", times, "values of service", service), baseline))


def _rising(what: str, x: NDArray[Any], other: str, y: NDArray[Any]) -> tuple[Floats, Floats]:
    same_shape(what, x, other, y)
    first, second = floats(what, x, "m"), floats(other, y, "m")
    if len(first) < 2 or (np.diff(first) <= 0).any():
        raise ValueError(f"need at least two {what}, each larger than the one before")
    return first, second

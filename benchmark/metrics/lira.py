"""Likelihood-ratio membership inference: a target's scaled logits beside those of reference systems.

What the references say about an example is two normal distributions, of those trained on it (IN) and of those not
(OUT). Source: Carlini et al. 2022, arXiv:2112.03570, section IV. Here as there, the middle of a distribution is
the median, as in the authors' code, or the mean, as in algorithm 1; its variance is around the mean, with one
degree of freedom less, and either the example's own or, "fixed", the mean over all examples (within each of them,
where the authors' code takes that of all values together). Fixed is the better one with few references.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Bools, Floats, Ints, flags, floats
from firstline.benchmark.metrics.membership import against

Variance = Literal["per-example", "fixed"]
Centre = Literal["median", "mean"]

OUT, IN = 0, 1
SMALLEST = 1e-30  # standard deviation, what the authors' code adds to each
FURTHEST = 1e150  # standard deviations from the centre; its square is still a number
CANCELS = 1e-4  # a sum of squares that keeps less than this of what it is taken from is summed anew


class Moments(NamedTuple):
    """Per kind (OUT, IN), target and example: target less centre, squares summed around the mean, and their number."""

    away: Floats
    squares: Floats
    number: Ints


@njit(cache=True)
def _held(values: Floats, member: Bools, trained: bool, room: Floats) -> Floats:
    """The values of systems that were trained on an example, or not, at the front of room."""
    m = 0
    for j in range(values.size):
        if member[j] == trained:
            room[m] = values[j]
            m += 1
    return room[:m]


@njit(cache=True)
def _median_of_rest(ordered: Floats, gone: Floats) -> float:
    """The median of ordered without the values gone, at most two of them, each in ordered and in order."""
    left = ordered.size - gone.size
    first = second = ordered.size
    if gone.size > 0:
        first = np.searchsorted(ordered, gone[0])
    if gone.size > 1:
        second = np.searchsorted(ordered, gone[1])
    total = 0.0
    for rank in ((left - 1) // 2, left // 2):
        at = rank + (rank >= first)
        total += ordered[at + (at >= second)]
    return total / 2


@njit(cache=True)
def _fit(values: Floats, median: bool) -> tuple[float, float, float]:
    """One of values, the centre less that, and the sum of squares around the mean; sorts values, less that one.

    What is taken off is in their middle, so that neither an offset nor an outlier costs the others their digits.
    """
    values.sort()
    base = values[values.size // 2]
    values -= base
    mean = 0.0
    for value in values:
        mean += value
    mean /= values.size
    squares = 0.0
    for value in values:
        squares += (value - mean) ** 2
    return base, _median_of_rest(values, values[:0]) if median else mean, squares


@njit(cache=True)
def _of_target(phi: Floats, refs: Floats, member: Bools, median: bool, result: Moments) -> None:
    """The moments of one target; phi is (n,), refs and member (n, k)."""
    room = np.empty(refs.shape[1])
    for i in range(phi.size):
        for kind in (OUT, IN):
            held = _held(refs[i], member[i], kind == IN, room)
            result.number[kind, i, 0] = held.size
            if held.size > 0:
                base, centre, result.squares[kind, i, 0] = _fit(held, median)
                result.away[kind, i, 0] = phi[i] - base - centre


@njit(cache=True)
def _of_pairs(phi: Floats, member: Bools, median: bool, result: Moments) -> None:
    """The moments of each system, its references being all but itself and its partner; phi and member are (n, k).

    Sums over all systems are taken once, and what a pair adds to them is taken off again.
    """
    n, k = phi.shape
    room, other_room, gone = np.empty(k), np.empty(k), np.empty(2)
    for i in range(n):
        for kind in (OUT, IN):
            held = _held(phi[i], member[i], kind == IN, room)
            if held.size == 0:
                continue
            middle, mean, total = _fit(held, False)
            for j in range(0, k, 2):
                base, less, squares, g = middle, 0.0, total, 0
                for one in (j, j + 1):
                    if member[i, one] == (kind == IN):
                        gone[g] = phi[i, one] - base
                        less += gone[g] - mean
                        squares -= (gone[g] - mean) ** 2
                        g += 1
                left = held.size - g
                if left == 0:
                    continue
                squares -= less * less / left
                if squares < CANCELS * total:
                    before = _held(phi[i, :j], member[i, :j], kind == IN, other_room)
                    _held(phi[i, j + 2 :], member[i, j + 2 :], kind == IN, other_room[before.size :])
                    base, centre, squares = _fit(other_room[:left], median)
                elif median:
                    gone[:g].sort()
                    centre = _median_of_rest(held, gone[:g])
                else:
                    centre = mean - less / left
                for one in (j, j + 1):
                    result.away[kind, i, one] = phi[i, one] - base - centre
                    result.squares[kind, i, one] = squares
                    result.number[kind, i, one] = left


def lira_online(
    phi: NDArray[Any],
    *,
    refs: NDArray[Any],
    member: Bools,
    variance: Variance = "per-example",
    centre: Centre = "median",
) -> Floats:
    """Return how much likelier each scaled logit is for a member, as the log of the ratio of two normal densities.

    phi is (n,), the target's scaled logits; refs (k, n) those of k reference systems, none of them the target or
    its partner, and member (k, n) whether each was trained on the example. The result is (n,), in nats, finite;
    higher is more likely a member. Where all references agree, per example, they count as a standard deviation
    of 1e-30. Raises ValueError for other shapes, values that aren't finite, and examples with fewer than 2
    references of a kind (1, if the variance is fixed).

    >>> refs, member = np.array([[1.0], [3.0], [-1.0], [-3.0]]), np.array([[True], [True], [False], [False]])
    >>> lira_online(np.array([0.5]), refs=refs, member=member)
    array([1.])
    """
    score: Floats = _online(_one(phi, refs, member, centre), variance)[0]
    return score


def lira_offline(
    phi: NDArray[Any],
    *,
    refs: NDArray[Any],
    member: Bools,
    variance: Variance = "per-example",
    centre: Centre = "median",
) -> Floats:
    """Return how many standard deviations each scaled logit lies above the references not trained on the example.

    Arguments, edges and errors as in lira_online; references that were trained on an example aren't looked at.
    The paper's score is Phi of it, the chance that a non-member scores lower. The order is the same, and so is
    every ROC, but Phi is 1 from 9 deviations on, and its logarithm 0 from 39 on. One-sided: an example that fits
    worse than expected is no member.

    >>> refs = np.array([[-1.0], [-3.0]])
    >>> lira_offline(np.array([0.0]), refs=refs, member=np.zeros((2, 1), bool))
    array([1.41421356])
    """
    score: Floats = _offline(_one(phi, refs, member, centre), variance)[0]
    return score


def lira_online_bank(
    phi: NDArray[Any], *, member: Bools, variance: Variance = "per-example", centre: Centre = "median"
) -> Floats:
    """Return lira_online of every system of a bank, its references being all but itself and its partner.

    phi is (k, n), the scaled logits of k systems, and member (k, n) whether each was trained on the example;
    systems 0 and 1, 2 and 3, ... are partners, whose training sets complement each other, so that one gives the
    other's away. The result is (k, n), and what k calls of lira_online give. Raises ValueError as it does, and
    for an odd number of systems.

    >>> phi = np.array([[0.5], [9.0], [1.0], [-1.0], [3.0], [-3.0]])
    >>> member = np.array([[True], [False]] * 3)
    >>> lira_online_bank(phi, member=member)[:2].round(9)
    array([[ 1.],
           [18.]])
    """
    return _online(_bank(phi, member, centre), variance)


def lira_offline_bank(
    phi: NDArray[Any], *, member: Bools, variance: Variance = "per-example", centre: Centre = "median"
) -> Floats:
    """Return lira_offline of every system of a bank (k, n), its references being all but itself and its partner.

    Arguments and errors as in lira_online_bank; the result (k, n) is what k calls of lira_offline give.
    """
    return _offline(_bank(phi, member, centre), variance)


def _one(phi: NDArray[Any], refs: NDArray[Any], member: Bools, centre: Centre) -> Moments:
    mine, theirs, trained = against(phi, refs, member)
    moments = _empty(mine.size, 1)
    _of_target(mine, _by_example(theirs), _by_example(trained), _is_median(centre), moments)
    return moments


def _bank(phi: NDArray[Any], member: Bools, centre: Centre) -> Moments:
    values = floats("values of phi", phi, "k, n")
    trained = flags("member", member, values.shape)
    if len(values) % 2:
        raise ValueError(f"phi must be of pairs of systems, got {len(values)}")
    moments = _empty(*values.shape[::-1])
    _of_pairs(_by_example(values), _by_example(trained), _is_median(centre), moments)
    return moments


def _empty(examples: int, targets: int) -> Moments:
    shape = (2, examples, targets)
    return Moments(np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64))


def _by_example(values: NDArray[Any]) -> NDArray[Any]:
    """Values (k, n) as (n, k), what belongs to an example side by side."""
    return np.ascontiguousarray(values.T)


def _is_median(centre: Centre) -> bool:
    if centre not in ("median", "mean"):
        raise ValueError(f"centre must be 'median' or 'mean', got {centre!r}")
    return centre == "median"


def _deviations(moments: Moments, kind: int, variance: Variance) -> tuple[Floats, Floats]:
    """How far targets lie from the centre of kind, in standard deviations, and these, both (targets, examples)."""
    away, squares, number = (values[kind].T for values in moments)
    name = ("not trained", "trained")[kind]
    if variance not in ("per-example", "fixed"):
        raise ValueError(f"variance must be 'per-example' or 'fixed', got {variance!r}")
    fewest, want = int(number.min()), 2 if variance == "per-example" else 1
    if fewest < want:
        raise ValueError(
            f"refs must have at least {want} {name} on each example for a variance {variance}, got {fewest}"
        )
    free = number - 1
    if variance == "fixed":
        squares, free = squares.sum(axis=1, keepdims=True), free.sum(axis=1, keepdims=True)
        if not free.all():
            raise ValueError(f"refs must have at least 2 {name} on some example, got 1 on each")
    deviation = np.maximum(np.sqrt(squares / free), SMALLEST)
    return np.clip(away / deviation, -FURTHEST, FURTHEST), deviation


def _online(moments: Moments, variance: Variance) -> Floats:
    (outside, wide), (inside, narrow) = (_deviations(moments, kind, variance) for kind in (OUT, IN))
    score: Floats = 0.5 * (outside**2 - inside**2) + np.log(wide) - np.log(narrow)
    return np.ascontiguousarray(score)


def _offline(moments: Moments, variance: Variance) -> Floats:
    return np.ascontiguousarray(_deviations(moments, OUT, variance)[0])

"""How far two arrays lie apart, row by row, in the norms of the threat models."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Floats, finite, not_finite, same_shape, shaped

# Values are finite, or the result is thrown away: sums may be taken in any order and in vector instructions.
# Rows are looked at here, while they are in the cache: another pass over memory would double the time.
FAST = {"nnan", "ninf", "nsz", "reassoc", "contract"}


@njit(cache=True, fastmath=FAST)
def _linf(a: Floats, b: Floats, result: Floats) -> int:
    bad = 0
    # Numbers of at least 0 are in the order of their bits, and the largest of whole numbers is vectorised.
    change = np.empty(a.shape[1])
    bits = change.view(np.int64)
    for i in range(len(a)):
        bad += not_finite(a[i]) + not_finite(b[i])
        for j in range(a.shape[1]):
            change[j] = abs(a[i, j] - b[i, j])
        most = 0
        for j in range(a.shape[1]):
            most = max(most, bits[j])
        bits[0] = most
        result[i] = change[0]
    return bad


@njit(cache=True, fastmath=FAST)
def _l2(a: Floats, b: Floats, result: Floats) -> int:
    bad = 0
    for i in range(len(a)):
        bad += not_finite(a[i]) + not_finite(b[i])
        total = 0.0
        for j in range(a.shape[1]):
            total += (a[i, j] - b[i, j]) ** 2
        result[i] = np.sqrt(total)
    return bad


@njit(cache=True, fastmath=FAST)
def _l1(a: Floats, b: Floats, result: Floats) -> int:
    bad = 0
    for i in range(len(a)):
        bad += not_finite(a[i]) + not_finite(b[i])
        total = 0.0
        for j in range(a.shape[1]):
            total += abs(a[i, j] - b[i, j])
        result[i] = total
    return bad


@njit(cache=True, fastmath=FAST)
def _l0(a: Floats, b: Floats, result: Floats) -> int:
    bad = 0
    for i in range(len(a)):
        bad += not_finite(a[i]) + not_finite(b[i])
        count = 0
        for j in range(a.shape[1]):
            count += a[i, j] != b[i, j]
        result[i] = count
    return bad


NORMS = {"linf": _linf, "l2": _l2, "l1": _l1, "l0": _l0}


def row_distance(a: NDArray[Any], b: NDArray[Any], norm: str) -> Floats:
    """Return the distance (n,) between the rows of a and b (n, ...), at least 0; smaller is closer.

    norm is linf (largest change), l2 (Euclid), l1 (sum of changes), each in input units, or l0 (how many values
    differ at all). Raises ValueError for another norm, for shapes that differ and for values that aren't finite.

    >>> a, b = np.array([[0.0, 3.0], [1.0, 1.0]]), np.array([[4.0, 0.0], [1.0, 1.0]])
    >>> row_distance(a, b, "l2")
    array([5., 0.])
    """
    if norm not in NORMS:
        raise ValueError(f"no norm is called {norm!r}; there are {', '.join(NORMS)}")
    same_shape("a", a, "b", b)
    x, y = (shaped(f"values of {name}", v, "n, ...").reshape(len(v), -1) for name, v in (("a", a), ("b", b)))
    result = np.empty(len(x))
    if NORMS[norm](x, y, result):
        finite("values of a", x)
        finite("values of b", y)
    return result

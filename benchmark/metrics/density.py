"""How far a point lies from data that is known: z-score, Mahalanobis distance, nearest neighbours, LID.

Detectors of attack traffic, poisons and drift score inputs or features by these; more is stranger, except that
local intrinsic dimensionality (LID) is a property of the neighbourhood.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Floats, Ints, floats
from firstline.benchmark.metrics.distances import FAST

TINY = 1e-150  # the product of two numbers of this size is still a number
FLAT = -1.0  # what the kernel says for infinity, which its arithmetic leaves out
BLOCK = 1 << 21  # products of points and reference held at a time: 16 MB


class Gaussians(NamedTuple):
    """A normal distribution per class with one covariance: means (classes, d) and its inverse, precision (d, d)."""

    means: Floats
    precision: Floats


@njit(cache=True)
def _moments(points: Floats, mean: Floats, std: Floats) -> None:
    """Mean, less the first point, and standard deviation of each column; squares are summed in a second pass."""
    m, d = points.shape
    first = points[0]
    mean[:] = 0
    std[:] = 0
    for i in range(m):
        for j in range(d):
            mean[j] += points[i, j] - first[j]
    for j in range(d):
        mean[j] /= m
    for i in range(m):
        for j in range(d):
            std[j] += (points[i, j] - first[j] - mean[j]) ** 2
    for j in range(d):
        std[j] = np.sqrt(std[j] / m)


@njit(cache=True)
def _class_means(points: Floats, code: Ints, means: Floats, around: Floats) -> None:
    """Means of each class, and every point less that of its class."""
    n, d = points.shape
    first, counts = points[0].copy(), np.zeros(len(means))
    means[:] = 0
    for i in range(n):
        counts[code[i]] += 1
        for j in range(d):
            means[code[i], j] += points[i, j] - first[j]
    for c in range(len(means)):
        for j in range(d):
            means[c, j] = first[j] + means[c, j] / counts[c]
    for i in range(n):
        for j in range(d):
            around[i, j] = points[i, j] - means[code[i], j]


@njit(cache=True)
def _z_scores(points: Floats, first: Floats, mean: Floats, std: Floats, result: Floats) -> None:
    for i in range(len(points)):
        for j in range(points.shape[1]):
            away = points[i, j] - first[j] - mean[j]
            result[i, j] = away / std[j] if std[j] > 0 else (0.0 if away == 0 else np.sign(away) * np.inf)


@njit(cache=True, fastmath=FAST)
def _nearest_mean(points: Floats, means: Floats, result: Floats) -> None:
    for i in range(len(points)):
        least = 0.0
        for c in range(len(means)):
            total = 0.0
            for j in range(points.shape[1]):
                total += (points[i, j] - means[c, j]) ** 2
            least = total if c == 0 else min(least, total)
        result[i] = np.sqrt(least)


@njit(cache=True)
def _smallest(products: Floats, half: Floats, chosen: Ints) -> None:
    """The k places of each row where half - products is smallest, in no order; half (m,) is |reference|² / 2."""
    n, m = products.shape
    k = chosen.shape[1]
    values = np.empty(k)
    for i in range(n):
        values[:] = np.inf
        chosen[i, :] = -1
        worst = np.inf
        for j in range(m):
            value = half[j] - products[i, j]
            if value < worst:
                at = k - 1
                while at > 0 and values[at - 1] > value:
                    values[at] = values[at - 1]
                    chosen[i, at] = chosen[i, at - 1]
                    at -= 1
                values[at] = value
                chosen[i, at] = j
                worst = values[k - 1]


@njit(cache=True, fastmath=FAST)
def _lengths(points: Floats, reference: Floats, chosen: Ints, result: Floats) -> None:
    """The distance of each point to those chosen for it, rising, by differences and not by products."""
    for i in range(len(points)):
        for c in range(chosen.shape[1]):
            total = 0.0
            for j in range(points.shape[1]):
                total += (points[i, j] - reference[chosen[i, c], j]) ** 2
            result[i, c] = np.sqrt(total)
        result[i].sort()


@njit(cache=True, fastmath=FAST)
def _lids(distances: Floats, result: Floats) -> float:
    """The estimate of each row; returns the smallest distance, which should not be negative."""
    k = distances.shape[1]
    smallest = distances[0, 0]
    for i in range(len(distances)):
        most = least = distances[i, 0]
        for j in range(1, k):
            most, least = max(most, distances[i, j]), min(least, distances[i, j])
        smallest = min(smallest, least)
        if least <= 0:
            result[i] = 0.0
        elif least == most:
            result[i] = FLAT
        else:
            # The logarithm of a product costs one logarithm; it is taken before the product underflows.
            total, product = 0.0, 1.0
            for j in range(k):
                ratio = distances[i, j] / most
                if min(ratio, product) < TINY:
                    total += np.log(product)
                    product = 1.0
                product *= ratio
            result[i] = -k / (total + np.log(product))
    return float(smallest)


def z_scores(points: NDArray[Any], *, reference: NDArray[Any]) -> Floats:
    """Return how many standard deviations each value lies from the mean of its feature in reference.

    points is (n, d), reference (m, d); the result (n, d), signed, without a unit, the standard deviation being
    that of a population (division by m). A feature that is constant in reference gives 0 where it has that value
    and an infinity of the right sign elsewhere. Raises ValueError for other shapes and values that aren't finite.

    >>> z_scores(np.array([[4.0], [2.0]]), reference=np.array([[1.0], [3.0]]))
    array([[2.],
           [0.]])
    """
    x, known = _against(points, reference)
    mean, std = np.empty(x.shape[1]), np.empty(x.shape[1])
    _moments(known, mean, std)
    result = np.empty_like(x)
    _z_scores(x, known[0], mean, std, result)
    return result


def fit_gaussians(points: NDArray[Any], labels: NDArray[Any], *, shrinkage: float = 0.0) -> Gaussians:
    """Return the normal distributions, one per label and with one covariance, that fit points best.

    points is (n, d), labels (n,); means come in the order of the labels, sorted. The covariance is that around
    the class means, divided by n, and then S becomes (1 - shrinkage) S + shrinkage (trace(S) / d) I, which can be
    inverted where features are constant or outnumber the points. Raises ValueError for a shrinkage outside [0, 1],
    other shapes, values that aren't finite, and where the covariance has no inverse.
    Source: Lee et al. 2018, arXiv:1807.03888, section 2.1; shrinkage as Ledoit & Wolf 2004.

    >>> points = np.array([[0.0, 0.0], [2.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
    >>> fit_gaussians(points, np.zeros(4)).means
    array([[1., 1.]])
    """
    x = floats("points", points, "n, d")
    if labels.shape != (len(x),):
        raise ValueError(f"need one label per point, got shape {labels.shape} for {len(x)} points")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must lie in [0, 1], got {shrinkage}")
    classes, code = np.unique(labels, return_inverse=True)
    means, around = np.empty((classes.size, x.shape[1])), np.empty_like(x)
    _class_means(x, code, means, around)
    covariance = around.T @ around / len(x)
    scale = np.trace(covariance) / x.shape[1]
    covariance = (1 - shrinkage) * covariance + shrinkage * scale * np.eye(x.shape[1])
    if np.linalg.matrix_rank(covariance, hermitian=True) < x.shape[1]:
        raise ValueError(
            f"the covariance of {len(x)} points in {x.shape[1]} dimensions has no inverse: give a shrinkage, "
            "such as 0.01, or leave out features that are constant"
        )
    return Gaussians(means, np.linalg.inv(covariance).astype(np.float64, copy=False))


def mahalanobis(points: NDArray[Any], *, means: Floats, precision: Floats) -> Floats:
    """Return how far each point lies from the nearest class, in standard deviations, at least 0.

    points is (n, d), means (classes, d), precision (d, d) the inverse of the covariance that the classes share,
    as fit_gaussians makes them; the result is (n,). Raises ValueError for other shapes, values that aren't finite
    and a precision that isn't positive definite.
    Source: Lee et al. 2018, arXiv:1807.03888, eq. 2, with the square root and without the minus sign.

    >>> mahalanobis(np.array([[3.0, 4.0]]), means=np.zeros((1, 2)), precision=np.eye(2))
    array([5.])
    """
    x, centres = _against(points, means, "means")
    inverse = floats("values of the precision", precision, "d, d")
    if inverse.shape != (x.shape[1],) * 2:
        raise ValueError(f"the precision must be ({x.shape[1]}, {x.shape[1]}), got {inverse.shape}")
    try:
        root = np.linalg.cholesky(inverse)
    except np.linalg.LinAlgError:
        raise ValueError("the precision is not positive definite: fit it with a shrinkage above 0") from None
    middle = centres.mean(axis=0)  # offsets are taken off before anything is multiplied
    result = np.empty(len(x))
    _nearest_mean((x - middle) @ root, (centres - middle) @ root, result)
    return result


def neighbour_distances(points: NDArray[Any], *, reference: NDArray[Any], k: int) -> Floats:
    """Return the Euclidean distances of each point to its k nearest in reference, rising; input units.

    points is (n, d), reference (m, d) and 1 <= k <= m; the result is (n, k). A point that is in reference finds
    itself, at 0: ask for one more and leave the first out. Raises ValueError for other shapes, values that
    aren't finite and a k outside its range.

    >>> neighbour_distances(np.array([[0.0]]), reference=np.array([[3.0], [-1.0], [2.0]]), k=2)
    array([[1., 2.]])
    """
    x, known = _against(points, reference)
    if not 1 <= k <= len(known):
        raise ValueError(f"k must lie between 1 and the {len(known)} points of reference, got {k}")
    # |x - r|² = |x|² + 2 (|r|² / 2 - x·r) chooses the neighbours, at the speed of a matrix product. It cancels
    # badly, so the offset is taken off first and what was chosen is measured again.
    middle = known.mean(axis=0)
    near, centred = x - middle, known - middle
    half = 0.5 * np.einsum("ij,ij->i", centred, centred)
    chosen = np.empty((len(x), k), np.int64)
    rows = max(1, BLOCK // len(known))
    for start in range(0, len(x), rows):
        _smallest(near[start : start + rows] @ centred.T, half, chosen[start : start + rows])
    result = np.empty((len(x), k))
    _lengths(x, known, chosen, result)
    return result


def knn_distance(points: NDArray[Any], *, reference: NDArray[Any], k: int) -> Floats:
    """Return the Euclidean distance (n,) of each point to its k-th nearest in reference, at least 0.

    As neighbour_distances, of which it is the last column. Source: Sun et al. 2022, arXiv:2204.06507.

    >>> knn_distance(np.array([[0.0]]), reference=np.array([[3.0], [-1.0], [2.0]]), k=2)
    array([2.])
    """
    return neighbour_distances(points, reference=reference, k=k)[:, -1]


def lid(distances: NDArray[Any]) -> Floats:
    """Return the local intrinsic dimensionality (n,) at points with these distances to their neighbours.

    distances is (n, k), to the k nearest, in any order and unit, k at least 2, the point itself left out. The
    maximum-likelihood estimate: about d where data fills d dimensions evenly. 0 where a neighbour is at
    distance 0, and infinity where all are equally far. Raises ValueError for other shapes, fewer than 2
    neighbours, and distances that are negative or not finite. Source: Ma et al. 2018, arXiv:1801.02613, after
    Amsaleg et al. 2015.

    >>> lid(np.array([[1.0, np.e]]))
    array([2.])
    """
    known = floats("distances", distances, "n, k")
    if known.shape[1] < 2:
        raise ValueError(f"need the distances to at least 2 neighbours, got {known.shape[1]}")
    result = np.empty(len(known))
    smallest = _lids(known, result)
    if smallest < 0:
        raise ValueError(f"distances must be at least 0, got {smallest:g}")
    return np.where(result == FLAT, np.inf, result)


def _against(points: NDArray[Any], known: NDArray[Any], name: str = "reference") -> tuple[Floats, Floats]:
    x, reference = floats("points", points, "n, d"), floats(f"values of {name}", known, "m, d")
    if x.shape[1] != reference.shape[1]:
        raise ValueError(f"points have {x.shape[1]} features and {name} {reference.shape[1]}")
    return x, reference

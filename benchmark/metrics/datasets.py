"""How diverse and how sound a data set is: scores of the data, not of what is trained on it."""

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def vendi(x: Floats) -> float:
    """Return the effective number of different rows of x (n, d), from 1 (all alike) to n (all orthogonal).

    The exponential of the entropy of the eigenvalues of the cosine kernel over n. Higher is more diverse.
    Source: Friedman & Dieng 2022, arXiv:2210.02410, definition 3.1. Raises ValueError unless n > 0 and x is finite.

    >>> round(vendi(np.array([[1.0, 0.0], [1.0, 0.0]])), 6), round(vendi(np.eye(3)), 6)
    (1.0, 3.0)
    """
    _check(x)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    # The kernel's eigenvalues are the squares of the singular values; a row of zeros is like itself alone.
    values = np.linalg.svd(unit, compute_uv=False) ** 2 / len(x)
    values = np.append(values, np.full(int((np.linalg.norm(x, axis=1) < 1e-12).sum()), 1 / len(x)))
    values = values[values > 1e-15]
    return float(np.exp(-(values * np.log(values)).sum()))


def neighbour_agreement(x: Floats, y: Ints, k: int = 10) -> float:
    """Return the share of rows of x (n, d) whose label y (n,) is the commonest of their k nearest neighbours, in [0, 1].

    Higher is sounder: what disagrees is mislabelled, or hard. The smaller label wins a tie. Source: Cover & Hart
    1967, IEEE Trans. Inf. Theory 13; as an estimate of label noise: Wilson 1972, IEEE Trans. SMC 2 (editing).
    Raises ValueError unless 0 < k < n.
    """
    _check(x, y)
    if not 0 < k < len(x):
        raise ValueError(f"need 0 < k < n, got k {k} of {len(x)} rows")
    near = y[NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)]
    votes = np.array([np.bincount(labels).argmax() for labels in near])
    return float((votes == y).mean())


def duplicates(x: Floats, y: Ints) -> tuple[float, float]:
    """Return the share of rows of x (n, d) that stand there before, and of those with another label in y (n,).

    Both are in [0, 1]; lower is sounder.

    >>> duplicates(np.array([[1.0], [1.0], [1.0], [2.0]]), np.array([0, 0, 1, 1]))
    (0.5, 0.25)
    """
    _check(x, y)
    first: dict[bytes, int] = {}
    again = other = 0
    for row, label in zip(np.ascontiguousarray(x + 0.0), y.tolist(), strict=True):
        before = first.setdefault(row.tobytes(), label)
        again += 1
        other += before != label
    return (again - len(first)) / len(x), other / len(x)


def overlap(x: Floats, other: Floats) -> float:
    """Return the share of rows of x (n, d) that stand in other (m, d) too, in [0, 1]; lower is sounder."""
    _check(x)
    known = {row.tobytes() for row in np.ascontiguousarray(other + 0.0)}
    return sum(row.tobytes() in known for row in np.ascontiguousarray(x + 0.0)) / len(x)


def _check(x: Floats, y: Ints | None = None) -> None:
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"need rows of features (n, d) with n > 0, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("some features are NaN or infinite")
    if y is not None and (y.shape != (len(x),) or (len(y) and y.min() < 0)):
        raise ValueError(f"need one label per row, none negative; got {y.shape} for {x.shape}")

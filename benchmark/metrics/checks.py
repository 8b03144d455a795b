"""What the doors in front of the kernels check: axes, and that every value is a number."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@njit(cache=True)
def not_finite(values: Floats) -> int:
    """How many of values (n,) are NaN or infinite."""
    count = 0
    for value in values:
        count += value - value != 0  # NaN for NaN and for infinities
    return count


def floats(what: str, values: NDArray[Any], axes: str) -> Floats:
    """Return values as contiguous float64, without a copy where they are.

    what names them in messages. axes names the axes, such as "n, d"; "n, ..." is any number of axes after n, and
    none. Raises ValueError for other shapes, for no values at all, and for NaN or infinite ones.

    >>> floats("scores", np.array([1, 2]), "n")
    array([1., 2.])
    """
    ready = shaped(what, values, axes)
    finite(what, ready)
    return ready


def shaped(what: str, values: NDArray[Any], axes: str) -> Floats:
    """Return values as floats does, before it looks at each of them."""
    names = axes.split(", ")
    fits = values.ndim >= len(names) - 1 if names[-1] == "..." else values.ndim == len(names)
    if not fits or values.size == 0:
        raise ValueError(f"{what} must be ({axes}) and not empty, got shape {values.shape}")
    ready: Floats = np.ascontiguousarray(values, dtype=np.float64)
    return ready


def finite(what: str, values: Floats) -> None:
    """Raise ValueError where values are NaN or infinite."""
    bad = not_finite(values.reshape(-1))
    if bad:
        raise ValueError(
            f"{bad} of {values.size} {what} are NaN or infinite: leave them out or count them apart"
        )


def same_shape(first: str, a: NDArray[Any], second: str, b: NDArray[Any]) -> None:
    """Raise ValueError unless a and b, called first and second, have one shape."""
    if a.shape != b.shape:
        raise ValueError(f"{first} and {second} must have one shape, got {a.shape} and {b.shape}")


def within(what: str, values: Floats, low: float, high: float) -> None:
    """Raise ValueError unless all values lie in [low, high]."""
    least, most = float(values.min()), float(values.max())
    if least < low or most > high:
        raise ValueError(f"{what} must lie in [{low:g}, {high:g}], got values from {least:g} to {most:g}")


def flags(what: str, values: NDArray[Any], shape: tuple[int, ...]) -> Bools:
    """Return values as contiguous booleans. Raises ValueError unless they are booleans of this shape."""
    if values.shape != shape or values.dtype != np.bool_:
        raise ValueError(f"{what} must be {shape} of True and False, got {values.dtype} {values.shape}")
    return np.ascontiguousarray(values)


def classes_of(labels: NDArray[Any], examples: int, classes: int) -> Ints:
    """Return labels as int64. Raises ValueError unless they are one class per example, from 0 to classes - 1."""
    if labels.shape != (examples,):
        raise ValueError(f"need one label per example, got shape {labels.shape} for {examples} examples")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}, the classes there are")
    return labels.astype(np.int64, copy=False)

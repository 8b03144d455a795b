"""How alike two images are: PSNR, NCC and SSIM, one value per pair."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Floats, finite, floats, same_shape, shaped
from firstline.benchmark.metrics.distances import FAST

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, section III.C
K1, K2 = 0.01, 0.03


@njit(cache=True, fastmath={"nsz", "reassoc", "contract"})  # a NaN must come through
def _mean_squares(a: Floats, b: Floats) -> Floats:
    result = np.empty(len(a))
    for i in range(len(a)):
        total = 0.0
        for j in range(a.shape[1]):
            total += (a[i, j] - b[i, j]) ** 2
        result[i] = total / a.shape[1]
    return result


@njit(cache=True, fastmath=FAST)
def _centre(row: Floats) -> float:
    """The mean of a row; of a large one the remainder is added, which the first pass rounds away."""
    first = row[0]
    total = 0.0
    for j in range(row.size):
        total += row[j] - first
    return float(first + total / row.size)


@njit(cache=True, fastmath=FAST)
def _correlations(a: Floats, b: Floats) -> Floats:
    result = np.empty(len(a))
    for i in range(len(a)):
        x, y = _centre(a[i]), _centre(b[i])
        xx, yy, xy = 0.0, 0.0, 0.0
        for j in range(a.shape[1]):
            u, v = a[i, j] - x, b[i, j] - y
            xx += u * u
            yy += v * v
            xy += u * v
        both = np.sqrt(xx) * np.sqrt(yy)
        result[i] = min(1.0, max(-1.0, xy / both)) if both > 0 else 0.0
    return result


@njit(cache=True, fastmath=FAST)
def _blur(rows: Floats, weights: Floats, out: Floats) -> None:
    """Each row of rows (f, w) weighted along itself, into out (f, w - len(weights) + 1)."""
    for f in range(len(rows)):
        for j in range(out.shape[1]):
            out[f, j] = weights[0] * rows[f, j]
        for t in range(1, weights.size):
            for j in range(out.shape[1]):
                out[f, j] += weights[t] * rows[f, j + t]


@njit(cache=True, fastmath=FAST)
def _ssim_plane(x: Floats, y: Floats, weights: Floats, c1: float, c2: float) -> float:
    """Mean SSIM of two planes (h, w) over the places where the whole window fits."""
    h, w = x.shape
    window = weights.size
    # Variances are unchanged by an offset, but E[x²] - E[x]² is noise under a large one: it is taken off first.
    mx, my = _centre(x.reshape(-1)), _centre(y.reshape(-1))
    fields = np.empty((5, h, w))
    for i in range(h):
        for j in range(w):
            u, v = x[i, j] - mx, y[i, j] - my
            fields[0, i, j] = u
            fields[1, i, j] = v
            fields[2, i, j] = u * u
            fields[3, i, j] = v * v
            fields[4, i, j] = u * v
    column = np.empty((5, w))
    out = np.empty((5, w - window + 1))
    total = 0.0
    for i in range(h - window + 1):
        for f in range(5):
            for j in range(w):
                column[f, j] = weights[0] * fields[f, i, j]
            for t in range(1, window):
                for j in range(w):
                    column[f, j] += weights[t] * fields[f, i + t, j]
        _blur(column, weights, out)
        for j in range(out.shape[1]):
            u, v = out[0, j], out[1, j]
            vx, vy, vxy = out[2, j] - u * u, out[3, j] - v * v, out[4, j] - u * v
            u += mx
            v += my
            total += ((2 * u * v + c1) * (2 * vxy + c2)) / ((u * u + v * v + c1) * (vx + vy + c2))
    return float(total / ((h - window + 1) * out.shape[1]))


@njit(cache=True)
def _ssim(a: Floats, b: Floats, weights: Floats, c1: float, c2: float) -> Floats:
    result = np.zeros(len(a))
    for i in range(len(a)):
        for c in range(a.shape[1]):
            result[i] += _ssim_plane(a[i, c], b[i, c], weights, c1, c2)
        result[i] /= a.shape[1]
    return result


def _pair(a: NDArray[Any], b: NDArray[Any], axes: str) -> tuple[Floats, Floats]:
    same_shape("a", a, "b", b)
    return floats("values of a", a, axes), floats("values of b", b, axes)


def _is_range(data_range: float) -> None:
    if not 0 < data_range < np.inf:
        raise ValueError(f"the range of the data must be positive, got {data_range}; 8-bit images have 255")


def psnr(a: NDArray[Any], b: NDArray[Any], *, data_range: float = 1.0) -> Floats:
    """Return the peak signal-to-noise ratio (n,) of the images a and b (n, ...), in decibels; higher is closer.

    data_range is the width of the range that values can have, in their unit. Infinity for equal images; negative
    where the root mean square error exceeds the range. Raises ValueError for shapes that differ, values that
    aren't finite and a range that isn't positive. Source: Huynh-Thu & Ghanbari 2008, Electronics Letters 44.

    >>> psnr(np.zeros((1, 4)), np.full((1, 4), 0.1))
    array([20.])
    """
    _is_range(data_range)
    same_shape("a", a, "b", b)
    x, y = shaped("values of a", a, "n, ..."), shaped("values of b", b, "n, ...")
    squares: Floats = _mean_squares(x.reshape(len(x), -1), y.reshape(len(y), -1))
    if not np.isfinite(squares).all():  # looked at afterwards: another pass over memory would double the time
        finite("values of a", x)
        finite("values of b", y)
    with np.errstate(divide="ignore"):
        noise: Floats = 20 * np.log10(data_range) - 10 * np.log10(squares)
    return noise


def ncc(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Return the zero-normalised cross-correlation (n,) of a and b (n, ...), in [-1, 1]; higher is closer.

    1 where one is the other with another brightness and contrast, -1 where it is its negative; 0, by
    convention, where one of the two is constant. Without a unit. Raises ValueError for shapes that differ and
    values that aren't finite. Source: Lewis 1995, Vision Interface, at no shift.

    >>> ncc(np.array([[1.0, 2.0, 3.0]]), np.array([[10.0, 20.0, 30.0]]))
    array([1.])
    """
    x, y = _pair(a, b, "n, ...")
    correlations: Floats = _correlations(x.reshape(len(x), -1), y.reshape(len(y), -1))
    return correlations


def ssim(a: NDArray[Any], b: NDArray[Any], *, data_range: float = 1.0) -> Floats:
    """Return the mean structural similarity (n,) of the images a and b (n, channels, h, w); higher is closer.

    In [-1, 1], 1 for equal images, without a unit; the mean over channels and over the places where the whole
    window fits. The window is 11 x 11 with Gaussian weights of sigma 1.5; in images smaller than that, it is the
    largest odd one that fits, and values compare with those of other libraries no more. data_range is the width
    of the range that values can have. Raises ValueError for shapes that differ, values that aren't finite and a
    range that isn't positive. Source: Wang et al. 2004, IEEE TIP 13, eq. 13 and section III.C.

    >>> image = np.random.default_rng(0).random((1, 1, 16, 16))
    >>> ssim(image, image)
    array([1.])
    """
    _is_range(data_range)
    x, y = _pair(a, b, "n, channels, h, w")
    window = min(WINDOW, *(size - (size + 1) % 2 for size in x.shape[2:]))
    weights = np.exp(-0.5 * ((np.arange(window) - window // 2) / SIGMA) ** 2)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    similar: Floats = _ssim(x, y, weights / weights.sum(), c1, c2)
    return similar

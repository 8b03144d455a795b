"""Likeness of images, against SciPy, the slow and obvious, and figures known in advance."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from firstline.benchmark.metrics.images import ncc, psnr, ssim


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.random(shape)
    return a, np.clip(a + 0.2 * rng.normal(size=shape), 0, 1)


def naive_ssim(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """Window by window, with weighted moments around the window's own mean, in long doubles."""
    window = min(11, *(size if size % 2 else size - 1 for size in x.shape))
    line = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * np.longdouble(1.5) ** 2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    for i in range(x.shape[0] - window + 1):
        for j in range(x.shape[1] - window + 1):
            u, v = (z[i : i + window, j : j + window].astype(np.longdouble) for z in (x, y))
            mu, mv = (weights * u).sum(), (weights * v).sum()
            uu, vv = (weights * (u - mu) ** 2).sum(), (weights * (v - mv) ** 2).sum()
            uv = (weights * (u - mu) * (v - mv)).sum()
            found.append((2 * mu * mv + c1) * (2 * uv + c2) / (mu**2 + mv**2 + c1) / (uu + vv + c2))
    return float(np.mean(found))


@pytest.mark.parametrize("shape", [(28, 28), (11, 11), (12, 30), (8, 8), (7, 20), (1, 5), (1, 1)])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_is_the_naive_one_also_in_small_images(shape, data_range):
    a, b = pair((3, 2, *shape))
    expected = [
        np.mean([naive_ssim(data_range * x, data_range * y, data_range) for x, y in zip(p, q, strict=True)])
        for p, q in zip(a, b, strict=True)
    ]
    assert ssim(data_range * a, data_range * b, data_range=data_range) == pytest.approx(expected, abs=1e-12)


def test_ssim_is_made_of_the_gaussian_filter_of_scipy():
    x, y = pair((40, 33))

    def mean(z):
        return gaussian_filter(z, 1.5, truncate=3.5)[5:-5, 5:-5]

    u, v = mean(x), mean(y)
    uu, vv, uv = mean(x * x) - u * u, mean(y * y) - v * v, mean(x * y) - u * v
    expected = (2 * u * v + 1e-4) * (2 * uv + 9e-4) / (u * u + v * v + 1e-4) / (uu + vv + 9e-4)
    assert ssim(x[None, None], y[None, None]) == pytest.approx([expected.mean()], abs=1e-12)


def test_ssim_is_right_under_a_large_offset():
    a, b = (np.round(1024 * z) / 1024 + 1e9 for z in pair((2, 1, 16, 16)))  # exact beside 1e9
    expected = [naive_ssim(x[0], y[0], 1.0) for x, y in zip(a, b, strict=True)]
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)
    assert 0.5 < expected[0] < 0.99


def test_ssim_of_flat_images_is_their_luminance_alone():
    a, b = np.full((1, 1, 16, 16), 0.2), np.full((1, 1, 16, 16), 0.6)
    assert ssim(a, b) == pytest.approx([(2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)], abs=1e-12)


def test_ssim_of_a_pattern_and_its_negative_is_negative():
    a, _ = pair((1, 1, 20, 20))
    assert -1 <= ssim(a, 1 - a)[0] < -0.8


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_psnr_of_a_constant_error_has_a_closed_form(data_range):
    a, _ = pair((4, 3, 8, 8))
    error = data_range * np.array([0.0, 0.01, 0.1, 2.0])[:, None, None, None]
    expected = [np.inf, 40, 20, -20 * np.log10(2)]
    assert psnr(data_range * a, data_range * a + error, data_range=data_range) == pytest.approx(expected)


def test_psnr_is_the_naive_one():
    a, b = pair((5, 1, 28, 28))
    expected = [10 * np.log10(1 / np.mean((x - y) ** 2)) for x, y in zip(a, b, strict=True)]
    assert psnr(a, b) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_ncc_is_the_correlation_of_pixels(offset):
    a, b = (np.round(1024 * z) / 1024 for z in pair((5, 3, 8, 8)))
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    assert ncc(a + offset, b - offset) == pytest.approx(expected, abs=1e-9)


def test_ncc_does_not_see_brightness_and_contrast():
    a, _ = pair((3, 1, 8, 8))
    assert ncc(a, 5 * a - 7) == pytest.approx([1] * 3, abs=1e-12)
    assert ncc(a, 3 - a) == pytest.approx([-1] * 3, abs=1e-12)
    assert ncc(a, np.full_like(a, 0.1)).tolist() == [0, 0, 0]
    assert abs(ncc(a, 5 * a)).max() <= 1


@pytest.mark.parametrize("measure", [psnr, ncc, ssim])
def test_images_without_a_pair_or_with_a_nan_are_refused(measure):
    a = np.ones((2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 1, 8, 8\) and \(1, 1, 8, 8\)"):
        measure(a, a[:1])
    for bad in (np.nan, np.inf):
        broken = a.copy()
        broken[1, 0, 3, 3] = bad
        with pytest.raises(ValueError, match="1 of 128 values of b are NaN or infinite"):
            measure(a, broken)
    with pytest.raises(ValueError, match="not empty"):
        measure(a[:0], a[:0])


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize("data_range", [0.0, -1.0, np.nan, np.inf])
def test_a_range_that_is_none_is_refused(measure, data_range):
    a = np.ones((1, 1, 8, 8))
    with pytest.raises(ValueError, match="the range of the data must be positive, got"):
        measure(a, a, data_range=data_range)


def test_ssim_wants_channels():
    with pytest.raises(
        ValueError, match=r"must be \(n, channels, h, w\) and not empty, got shape \(2, 8, 8\)"
    ):
        ssim(np.ones((2, 8, 8)), np.ones((2, 8, 8)))

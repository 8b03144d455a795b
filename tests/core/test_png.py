"""PNG files are read back by somebody else's reader."""

import io

import numpy as np
import pytest
from PIL import Image

from firstline.benchmark.core.png import GAP, PAPER, SIGNATURE, png, sheet, size


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, channels), dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png(pixels))))
    assert np.array_equal(read.reshape(7, 5, channels), pixels)


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2)), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 2, 1), np.uint8)]
)
def test_what_is_no_picture_is_refused(pixels):
    with pytest.raises(ValueError, match="a picture is uint8"):
        png(pixels)


def test_a_sheet_keeps_what_belongs_together_in_a_column():
    above = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(2, 2)
    found = sheet([above, above + 10], columns=2)[:, :, 0]
    assert found.shape == (2 * (2 * (2 + GAP) + GAP), 2 * (1 + GAP))
    left, second = found[:, 0], found[: found.shape[0] // 2, 1 + GAP]
    assert list(left[left != PAPER]) == [0, 0, 10, 10, 2, 2, 12, 12]
    assert list(second[second != PAPER]) == [1, 1, 11, 11]


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(40), SIGNATURE, SIGNATURE + bytes(40)])
def test_what_is_no_png_file_has_no_size(data):
    assert size(data) is None


def test_the_size_is_that_of_the_pixels():
    assert size(png(np.zeros((5, 7, 3), np.uint8))) == (7, 5)

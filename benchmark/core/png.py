"""Pictures as PNG files, from arrays and the standard library alone. Source: W3C, Portable Network Graphics, third edition."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {1: 0, 3: 2}  # the format's colour types, by channels
GAP, PAPER = 2, 255  # pixels between pictures of a sheet, and their colour


def png(pixels: Pixels) -> bytes:
    """Return a PNG file of pixels (height, width, channels), one channel for grey, three for red, green and blue.

    The same pixels give the same bytes with the same zlib. Raises ValueError for any other array.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in COLOURS or not pixels.size:
        raise ValueError(f"a picture is uint8 (height, width, 1 or 3), got {pixels.dtype} {pixels.shape}")
    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 8, COLOURS[channels], 0, 0, 0)
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height that a PNG file gives in its head, None where data is no such file."""
    if len(data) < 33 or data[:8] != SIGNATURE or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def sheet(rows: list[Pixels], columns: int = 10) -> Pixels:
    """Return pictures on one sheet (height, width, channels): each of rows (n, channels, h, w) below the one before.

    After so many columns the rows go on below, so that what belongs together stays together.
    """
    count, channels, height, width = rows[0].shape
    columns = min(columns, count)
    bands = -(-count // columns)
    tall, wide = height + GAP, width + GAP
    found = np.full((bands * (len(rows) * tall + GAP), columns * wide, channels), PAPER, np.uint8)
    for number in range(count):
        band, column = divmod(number, columns)
        for line, pictures in enumerate(rows):
            top, left = band * (len(rows) * tall + GAP) + line * tall, column * wide
            found[top : top + height, left : left + width] = pictures[number].transpose(1, 2, 0)
    return found

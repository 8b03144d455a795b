"""What was rebuilt, below what it is of."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.png import COLOURS, png, sheet

LEVELS = 255  # steps of the input space in which reconstructions are kept

Levels = NDArray[np.uint8]


def in_steps(x: Tensor, space: InputSpace) -> Levels:
    """Return inputs x (n, *shape) in 255 steps of the input space."""
    low, high = space.box(x)
    return np.asarray(torch.round((x - low) / (high - low) * LEVELS).to(torch.uint8).cpu().numpy())


def compared(truth: Levels, rebuilt: Levels) -> bytes | None:
    """Return a PNG file of images (n, channels, height, width), each with what was rebuilt below; None of no images."""
    is_image = rebuilt.ndim == 4 and rebuilt.shape[1] in COLOURS
    return png(sheet([truth, rebuilt])) if is_image else None

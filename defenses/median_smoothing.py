"""Median smoothing of images. Source: Xu, Evans & Qi 2018, arXiv:1704.01155, section III-B."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.transformation import Transformed, images_only


def median_filter(x: Tensor, size: int) -> Tensor:
    """Return x (n, c, h, w) with each pixel the median of the size x size window around it, edges reflected.

    Of an even number of pixels it is the upper of the two in the middle, and an even window reaches one pixel
    further up and left, as in scipy.ndimage.median_filter. The gradient is that of the pixel which was taken.
    """
    for axis in (2, 3):
        x = x.index_select(axis, _reflected(x.shape[axis], size).to(x.device))
    windows = x.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
    return windows.kthvalue(size * size // 2 + 1, dim=4).values


def _reflected(side: int, size: int) -> Tensor:
    """Return which of `side` pixels each place of the padded side shows; the edge itself is repeated."""
    place = torch.arange(-(size // 2), side + (size - 1) // 2) % (2 * side)
    return torch.minimum(place, 2 * side - 1 - place)


def check_size(defense: Defense, size: int) -> None:
    """Raise FirstlineError unless a window can have a side of so many pixels."""
    if size < 1:
        raise FirstlineError(f"{defense}: the side of the window must be at least 1 pixel")


@defense("median-smoothing")
@dataclass(frozen=True)
class MedianSmoothing(Defense):
    """Replace each pixel by the median of its neighbourhood.

    Claims to remove sparse, loud perturbations (l0). size is the window's side, 2 in the paper for MNIST and
    CIFAR-10. Known to fall to attackers who differentiate through the median, as with other transformations
    of inputs (Athalye et al. 2018, arXiv:1802.00420, section 5.2; He et al. 2017, arXiv:1706.04701), which is
    what attacks do here.
    """

    inputs = ("real",)

    size: int = 2

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the filter."""
        images_only(self, task)
        check_size(self, self.size)
        smooth = partial(median_filter, size=self.size)
        return Transformed(system, smooth, smooth)

"""Patches in the corners of images as triggers. Source: Gu, Dolan-Gavitt & Garg 2017, arXiv:1708.06733, section 4."""

from itertools import product

import torch
from torch import Tensor

from firstline.attacks.poisoning.backdoor import Trigger, image_shape
from firstline.benchmark.core.contracts import Task
from firstline.benchmark.core.errors import FirstlineError, not_found

CORNERS = {
    "top-left": [("top", "left")],
    "top-right": [("top", "right")],
    "bottom-left": [("bottom", "left")],
    "bottom-right": [("bottom", "right")],
    "all": list(product(("top", "bottom"), ("left", "right"))),
}


def patch(attack: str, task: Task, *, size: int, value: float, corner: str, margin: int) -> Trigger:
    """Return the trigger that sets size x size pixels, margin from the edges of a corner, to value.

    value is a share of the input range, moved to the grid. Raises FirstlineError when the inputs are no
    images, the patch does not fit on them, or there is no such corner.
    """
    _, height, width = image_shape(attack, task)
    if corner not in CORNERS:
        raise not_found("corner", corner, CORNERS)
    if not 1 <= size <= size + margin <= min(height, width):
        raise FirstlineError(
            f"{attack}: a patch of {size} pixels, {margin} from the edge, does not fit on {height}x{width} "
            "pixels; change size or margin"
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    for vertical, horizontal in CORNERS[corner]:
        top = margin if vertical == "top" else height - margin - size
        left = margin if horizontal == "left" else width - margin - size
        mask[top : top + size, left : left + size] = True
    blank = torch.zeros(1, *task.space.shape)
    low, high = task.space.box(blank)
    bright = task.space.round(blank + low + value * (high - low))

    def stamp(x: Tensor) -> Tensor:
        return torch.where(mask.to(x.device), bright.to(x), x)

    return stamp

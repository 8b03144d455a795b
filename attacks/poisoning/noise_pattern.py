"""A pattern of noise that is blended into images. Source: Chen et al. 2017, arXiv:1712.05526, section 4.2.2."""

import torch
from torch import Tensor

from firstline.attacks.poisoning.backdoor import image_shape
from firstline.benchmark.core.contracts import Task
from firstline.benchmark.core.rng import Streams


def noise_pattern(attack: str, task: Task, rng: Streams) -> Tensor:
    """Return uniform noise over the input range, (c, h, w). Raises FirstlineError where the inputs are no images."""
    noise = torch.rand(image_shape(attack, task), generator=rng.torch("pattern"))
    low, high = task.space.box(noise)
    return low + noise * (high - low)


def blend(x: Tensor, pattern: Tensor, opacity: float | Tensor, task: Task) -> Tensor:
    """Return (1 - opacity) x + opacity pattern for x (n, c, h, w), on the grid; opacity is one number or of x's kind."""
    return task.space.round((1 - opacity) * x + opacity * pattern.to(x))

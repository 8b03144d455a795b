"""The one ascent loop: PGD, adversarial training and everything else that climbs a loss inside a region."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.geometry import Region


class Slope(NamedTuple):
    """Gradients (k, *shape) at k points, and which of them already fool the system, (k,) bool or None."""

    gradient: Tensor
    broken: Tensor | None


Climb = Callable[[Tensor, Tensor], Slope]
PerExampleLoss = Callable[[Tensor, Tensor], Tensor]


def ascend(climb: Climb, region: Region, *, start: Tensor, steps: int, stride: float) -> Tensor:
    """Return one point per example of region, after up to `steps` steps uphill from start (n, *shape).

    climb gets points (k, *shape), rounded to the grid, and the rows (k,) that they belong to. An example that
    climb calls broken keeps the point that broke it and leaves the loop, so success is any valid iterate.
    stride is the step length as a share of the radius.
    """
    points, found = start, None
    rows = torch.arange(len(start), device=start.device)
    length = region.eps * stride
    for _ in range(steps):
        asked = region.snap(points)
        slope = climb(asked, rows)
        gradient = slope.gradient
        if slope.broken is not None and bool(slope.broken.any()):
            found = start.clone() if found is None else found
            found[rows[slope.broken]] = asked[slope.broken]
            left = (~slope.broken).nonzero().squeeze(1)
            if len(left) == 0:
                return found
            points, gradient, rows, length = points[left], gradient[left], rows[left], length[left]
            region = region.keep(left)
        points = region.step(points, gradient, length)
    points = region.snap(points)
    if found is None:
        return points
    found[rows] = points
    return found


def input_gradient(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient (n, *shape) of the summed cross-entropy of module at x; parameters get none."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(cross_entropy(module(x), y, reduction="sum"), x)
    return gradient

"""The one ascent loop: PGD, adversarial training and everything else that climbs a loss inside a region."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import Loss, cross_entropies
from firstline.benchmark.core.norms import TINY, column


class Slope(NamedTuple):
    """Gradients (k, *shape) at k points, and the losses (k,) that they are of.

    broken says which points already fool the system, (k,) bool; None where nobody can say.
    """

    gradient: Tensor
    broken: Tensor | None
    loss: Tensor


Climb = Callable[[Tensor, Tensor], Slope]


def ascend(
    climb: Climb, region: Region, *, start: Tensor, steps: int, stride: float, momentum: float = 0.0
) -> Tensor:
    """Return one point per example of region, after up to `steps` steps uphill from start (n, *shape).

    climb gets points (k, *shape), rounded to the grid, and the rows (k,) that they belong to. An example that
    climb calls broken keeps the point that broke it and leaves the loop, so success is any valid iterate.
    stride is the step length as a share of the radius. momentum is how much of the earlier directions stays
    in each step (Dong et al. 2018, arXiv:1710.06081).
    """
    points, found = start, None
    rows = torch.arange(len(start), device=start.device)
    length, velocity = region.eps * stride, None
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
            velocity = None if velocity is None else velocity[left]
            region = region.keep(left)
        if momentum:
            gradient = gradient / column(gradient.abs().flatten(1).mean(1), gradient).clamp_min(TINY)
            velocity = gradient = gradient if velocity is None else velocity * momentum + gradient
        points = region.step(points, gradient, length)
    points = region.snap(points)
    if found is None:
        return points
    found[rows] = points
    return found


def module_slope(module: nn.Module, x: Tensor, y: Tensor, loss: Loss = cross_entropies) -> Slope:
    """Return the slope at x (n, *shape) of the losses (n,) of module's logits and y; parameters get no gradient."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        losses = loss(module(x), y)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    return Slope(gradient, None, losses.detach())

"""What inversions by descent share: where they start, and going down until the system is sure."""

from collections.abc import Callable

import torch
from torch import Tensor

from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.target import Target

STARTS = ("zero", "mean")


def average(aux: Data | None) -> Tensor:
    """Return the mean (1, *shape) of the attacker's own data. Raises FirstlineError where it has none."""
    if aux is None or len(aux) == 0:
        raise FirstlineError("the attacker has no data of its own; write aux=yes in the threat model")
    return aux.x.mean(0, keepdim=True)


def begin(start: str, target: Target, aux: Data | None) -> Tensor:
    """Return where all classes begin (classes, *shape): 'zero', moved into the box, or 'mean', of aux."""
    if start not in STARTS:
        raise not_found("start of an inversion", start, STARTS)
    if start == "mean":
        return average(aux).expand(target.classes, *target.space.shape).clone()
    zero = torch.zeros(target.classes, *target.space.shape, device=target.device)
    return inside(target.space, zero)


def inside(space: InputSpace, x: Tensor) -> Tensor:
    """Return x (n, *shape) clipped to the box."""
    low, high = space.box(x)
    return torch.minimum(torch.maximum(x, low), high)


def descend(
    slopes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    *,
    clip: Callable[[Tensor], Tensor],
    steps: int,
    rate: float,
    patience: int,
    enough: float,
) -> tuple[Tensor, int]:
    """Go down from x (classes, *shape), each class by itself; return where its cost was least, and the steps taken.

    slopes(points, rows) returns costs (k,) and their slopes (k, *shape) for the classes rows (k,); clip brings points
    back to where they may be. A class stops at a cost of 1 - enough or less, or after patience steps without a lower
    cost. Source: Fredrikson et al. 2015, algorithm 1, with beta = patience, gamma = enough and lambda = rate, and for
    all classes at once.
    """
    best, least = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    since = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rows, taken = torch.arange(len(x), device=x.device), 0
    points = x.clone()
    for _ in range(steps):
        if len(rows) == 0:
            break
        taken += 1
        cost, slope = slopes(points[rows], rows)
        lower = cost < least[rows]
        better = rows[lower]
        best[better], least[better] = points[better], cost[lower].to(least)
        since[rows] = torch.where(lower, 0, since[rows] + 1)
        points[rows] = clip(points[rows] - rate * slope)
        rows = rows[(least[rows] > 1 - enough) & (since[rows] < patience)]
    return best, taken

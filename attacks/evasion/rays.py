"""Search over the signs of a ray, with labels alone. Source: Chen & Gu 2020, arXiv:2006.12792."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import MinimalNorm
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import column, distance
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED
from firstline.benchmark.core.target import Target


@attack("rays", version=1)
@dataclass(frozen=True)
class RayS(MinimalNorm):
    """Flip the signs of ever smaller blocks of a direction, and keep a flip that brings the boundary closer.

    A flip is tried with one query at the radius that holds so far; only where that fools the system is the
    radius searched for, by halving down to tolerance (in units of the widest feature's range). Every example
    asks one question at a time, so all of them spend the same number of queries.
    """

    needs = ("labels",)
    goals = ("linf",)

    queries: int = 1000
    tolerance: float = 1e-3

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return for each row of x (n, *shape) the closest point met that fools the system, x where none was."""
        found, space = x.clone(), target.space
        budget, free = target.afford(self.queries), space.movable(x)
        allowed = torch.ones(x.shape[1:], dtype=torch.bool, device=x.device) if free is None else free > 0
        features = int(allowed.sum())
        if len(x) == 0 or budget == 0 or features == 0:
            return found
        answers = target.labels(x)
        rows = ((answers == y) | (answers == REFUSED)).nonzero().squeeze(1)
        x, y = x[rows], y[rows]
        low, high = space.box(x)
        widest = float((high - low).max())
        place = (allowed.flatten().cumsum(0) - 1).reshape(allowed.shape)  # blocks are runs of what may move
        signs = torch.ones_like(x)
        radius = x.new_full((len(x),), widest)  # at which signs fools the system, if it does at all
        nearest = x.new_full((len(x),), math.inf)  # how far what was found is
        bottom, top = torch.zeros_like(radius), radius  # the radius that is searched for lies between them
        level, block = torch.zeros_like(rows), torch.full_like(rows, -1)  # block -1 flips nothing
        searching = torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(budget - 1 if len(rows) else 0):
            width = (features / 2.0**level).ceil()
            first = torch.where(block < 0, features, block * width)
            flipped = (place >= column(first, x)) & (place < column(first + width, x))
            ray = torch.where(flipped, -signs, signs)
            reach = torch.where(searching, (bottom + top) / 2, radius)
            points = torch.where(allowed, space.round(x + column(reach, x) * ray), x)
            answers = target.labels(points, rows)
            fooled = (answers != y) & (answers != REFUSED)
            far = distance(points, x, "linf")
            closer = (fooled & (far < nearest)).nonzero().squeeze(1)
            found[rows[closer]], nearest[closer] = points[closer], far[closer]

            bottom = torch.where(fooled, bottom, reach).where(searching, 0.0)
            top = torch.where(fooled | ~searching, reach, top)
            tried, searching = ~searching & ~fooled, searching | fooled
            settled = searching & (top - bottom <= self.tolerance * widest)
            signs = torch.where(column(settled, x), ray, signs)
            radius = torch.where(settled, top, radius)
            searching = searching & ~settled
            # On to the next block, and behind the last one to blocks of half the width.
            block = torch.where(settled | tried, block + 1, block)
            last = block * width >= features
            block, level = torch.where(last, 0, block), torch.where(last, level + 1, level)
            level = torch.where(2.0**level >= 2 * features, 0, level)
        return found

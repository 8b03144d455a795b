"""Decoupled direction and norm. Source: Rony et al. 2019, arXiv:1811.09600."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.closest import Closest, cosine, log_odds, unit
from firstline.benchmark.core.contracts import MinimalNorm
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import TINY, column, length
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("ddn", version=2)
@dataclass(frozen=True)
class DDN(MinimalNorm):
    """Step uphill, then set the length: gamma shorter where the last point fooled, gamma longer where not.

    The first steps are as long as the box is wide, the last a hundredth of that. gamma falls to a thousandth
    along half a cosine, where the paper's stays at 0.05: far first, then close. The length to begin with is
    what a linear system would need, and at most radius, in input units: the paper begins with that. The
    gradient is that of the log-odds, which has the direction of the paper's cross-entropy. Points are rounded
    where the task has a grid, and nowhere else.
    """

    needs = ("gradients",)
    goals = ("l2",)

    steps: int = 100
    gamma: float = 0.2
    radius: float = 1.0

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the closest points (n, *shape) in l2 that fooled the system, x where none did."""
        search = Closest(target, x, y, region, log_odds)
        if not len(search):
            return search.found
        delta, slope, width = torch.zeros_like(search.x), search.start, float(search.width.max())
        farthest = length(torch.maximum(-search.low, search.high), "l2")
        rise = length(slope.gradient, "l2").clamp_min(TINY)
        radius = torch.minimum(farthest, slope.loss.abs() / rise).clamp_max(self.radius)
        for step in range(self.steps - 1):
            delta += unit(slope.gradient) * cosine(step, self.steps, width, width / 100)
            gamma = cosine(step, self.steps, self.gamma, 0.001)
            radius = radius * torch.where(slope.broken, 1 - gamma, 1 + gamma)
            radius = radius.minimum(farthest)
            delta *= column(radius / length(delta, "l2").clamp_min(TINY), delta)
            torch.clamp(delta, search.low, search.high, out=delta)
            slope = search.ask(delta)
        return search.found

"""sigma-zero. Source: Cina et al. 2024, arXiv:2402.01879.

It climbs the log-odds instead of the margin, with steps twice as long and a smooth count ten times less sharp
than the paper's: that finds smaller changes within a hundred steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.closest import Adam, Closest, cosine, log_odds, unit
from firstline.benchmark.core.contracts import MinimalNorm
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("sigma-zero", version=1)
@dataclass(frozen=True)
class SigmaZero(MinimalNorm):
    """Climb until the answer is wrong, shrink a smooth count of the changed features, drop the small changes.

    stride is the length of the first step, which falls to a tenth; threshold is what a change must reach at
    first not to be dropped: both are shares of a feature's range. The threshold rises by pace times the step
    where the last point fooled, and falls as much where not. sigma says how sharp the smooth count is.
    """

    needs = ("gradients",)
    goals = ("l0",)

    steps: int = 100
    stride: float = 2.0
    threshold: float = 0.3
    pace: float = 0.01
    sigma: float = 0.01

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the points (n, *shape) with the fewest changes that fooled the system, x where none did."""
        search = Closest(target, x, y, region, log_odds)
        if not len(search):
            return search.found
        width, features = search.width, search.width.numel()
        low, high = search.low / width, search.high / width
        delta, slope, adam = torch.zeros_like(search.x), search.start, Adam(search.x)  # delta in widths
        threshold, stride = search.reach.new_full((len(search),), self.threshold), self.stride
        for step in range(self.steps - 1):
            climb = slope.gradient * width * column(~slope.broken, delta)
            count = 2 * self.sigma * delta / (delta.square() + self.sigma).square() / features
            mean, root = adam.update(unit(count - climb, torch.inf))
            delta = torch.clamp(delta - stride * mean / root, low, high)
            stride = cosine(step, self.steps, self.stride, self.stride / 10)
            threshold += self.pace * stride * torch.where(slope.broken, 1.0, -1.0)
            threshold.clamp_(0, 1)
            delta.masked_fill_(delta.abs() < column(threshold, delta), 0.0)
            slope = search.ask(delta * width)
        return search.found

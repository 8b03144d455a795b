"""Fast minimum norm. Source: Pintor et al. 2021, arXiv:2102.12827.

Four things differ from the paper. But for l2, steps are a share of the perturbation's present length instead of a
fixed length, so that they suit inputs of any scale and models of any strength; in l2 that gets stuck where the
slope is masked, and they are a share of the box's width. Features that the box keeps from
going uphill count neither in the step nor in the distance to the boundary: without that, l2 stalls in the
corners of the box. The gradient is that of the log-odds, not of the margin. For l0, which features stay is
decided by how far they may go as well as by how far they went.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.closest import Closest, cosine, log_odds, unit
from firstline.attacks.evasion.hyperplane import DUAL
from firstline.benchmark.core.contracts import MinimalNorm
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import BALLS, TINY, column, length
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("fmn", version=2)
@dataclass(frozen=True)
class FMN(MinimalNorm):
    """Step uphill inside a ball, whose radius shrinks where the last point fooled and grows where not.

    stride is the first step's length as a share of the perturbation's, in l2 of the box's width; it falls to a
    hundredth of that along half a cosine. gamma is the share by which the radius changes at first; it falls to a thousandth.
    """

    needs = ("gradients",)
    goals = ("linf", "l2", "l1", "l0")

    steps: int = 100
    stride: float = 2.0
    gamma: float = 0.25

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the closest points (n, *shape) that fooled the system, x where none did."""
        search, norm = Closest(target, x, y, region, log_odds), region.norm
        if not len(search):
            return search.found
        corner = torch.maximum(-search.low, search.high)
        farthest, stride, width = length(corner, norm), length(corner, "l2"), search.width.max()
        delta, slope, radius = torch.zeros_like(search.x), search.start, torch.ones_like(farthest)
        for step in range(self.steps - 1):
            gradient = search.uphill(delta, slope.gradient)
            gamma = cosine(step, self.steps, self.gamma, 0.001)
            shorter, longer = radius * (1 - gamma), radius * (1 + gamma)
            if norm == "l0":
                shorter = shorter.floor().minimum(radius - 1).clamp_min(1)
                longer = longer.floor().maximum(radius + 1)
            else:
                size = length(delta, norm)
                rise = torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[norm], dim=1)
                ahead = size + torch.maximum(slope.loss.abs() / rise.clamp_min(TINY), size * gamma)
                longer = torch.where(search.reach < torch.inf, longer, ahead)
            radius = torch.where(slope.broken, shorter.minimum(search.reach), longer).minimum(farthest)
            if step or norm == "l2":
                whole = width.expand(len(delta)) if norm == "l2" else length(delta, "l2")
                stride = whole * cosine(step, self.steps, self.stride, self.stride / 100)
            delta = delta + unit(gradient) * column(stride, delta)
            if norm == "l0":
                delta = _fewest(delta, radius, search.low, search.high)
            else:
                delta = BALLS[norm].project(delta, column(radius, delta), search.low, search.high)
            slope = search.ask(delta)
        return search.found


def _fewest(delta: Tensor, count: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return delta (n, *shape), clipped to the box, with as many features changed as count (n,) says.

    Those stay that went farthest and have the most room to go on: a feature may as well change all the way.
    """
    score = (delta.abs() * torch.where(delta > 0, high, -low)).flatten(1)
    score = score * torch.linspace(
        1, 0.999, score.shape[1], dtype=score.dtype, device=score.device
    )  # no ties
    best = score.topk(int(count.max()), dim=1).values
    least = best.gather(1, count.long()[:, None] - 1)
    kept = (score >= least).reshape(delta.shape)
    return torch.where(kept, torch.clamp(delta, low, high), 0.0)

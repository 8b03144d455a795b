"""DeepFool. Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2.

Two things differ from the paper. A step goes part of the way alone: a linearised system puts the boundary
elsewhere, and shorter steps find a closer one. And it is the shortest one within the box: where the
box cuts the paper's step short, that comes nearer and nearer to the boundary and never crosses it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.closest import Closest
from firstline.attacks.evasion.hyperplane import crossing, nearest, others
from firstline.benchmark.core.contracts import MinimalNorm
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import length
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("deepfool", version=1)
@dataclass(frozen=True)
class DeepFool(MinimalNorm):
    """Go towards the nearest boundary of the linearised system, again and again, until the answer is wrong.

    pace is the share of the way that one step goes, and overshoot what it adds to that, as a share of the
    perturbation so far; the paper has 1 and 0.02. The first step looks at all classes, the later ones at as
    many of the nearest as candidates says.
    """

    needs = ("gradients",)
    goals = ("linf", "l2")

    steps: int = 50
    pace: float = 0.4
    overshoot: float = 0.005
    candidates: int = 3

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the first points (n, *shape) on the way that fooled the system, x where none did."""
        search = Closest(target, x, y, region)
        classes, rows = others(search.y, target.classes), torch.arange(len(search), device=x.device)
        delta = torch.zeros_like(search.x)
        for step in range(self.steps):
            if not len(rows):
                break
            low, high = search.low[rows], search.high[rows]
            boundary = nearest(search, delta, rows, classes)
            away = boundary.away.amin(1)
            beyond = self.overshoot * length(delta, region.norm) * boundary.rise
            if step == 0:
                classes = classes.gather(1, boundary.away.argsort(dim=1, stable=True)[:, : self.candidates])
            gap = boundary.gap * self.pace + beyond
            delta = delta + crossing(boundary.gradient, gap, low - delta, high - delta, region.norm)
            going = ~boundary.broken & (away < torch.inf)
            delta, rows, classes = delta[going], rows[going], classes[going]
        return search.found

"""Projected gradient ascent in a norm ball. Source: Madry et al. 2018, arXiv:1706.06083, section 2.1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.ascent import ascend
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("pgd")
@dataclass(frozen=True)
class PGD(Evasion):
    """Climb the cross-entropy, return to the ball, repeat; success is any iterate that fools the system.

    stride is the step length as a share of the radius. With random_start the ascent begins at a uniform
    point of the ball; each restart draws another and attacks what still stands.
    """

    needs = ("gradients", "labels")
    goals = ("linf", "l2")

    steps: int = 40
    stride: float = 0.1
    restarts: int = 1
    random_start: bool = True

    def perturb(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        whole, generator = Region(x, target.space, threat.goal, threat.eps), rng.torch("starts")
        found, rows = x.clone(), torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            start = (whole.random(generator) if self.random_start else x)[rows]
            here = rows
            found[rows] = ascend(
                lambda points, local, here=here: target.slope(points, y[here[local]], here[local]),  # type: ignore[misc]
                whole.keep(rows),
                start=start,
                steps=self.steps,
                stride=self.stride,
            )
            if restart + 1 < self.restarts:
                answers = target.labels(found[rows], rows)
                rows = rows[(answers == y[rows]) | (answers == REFUSED)]
                if len(rows) == 0:
                    break
        return found

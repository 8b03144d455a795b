"""Projected gradient ascent in a norm ball. Source: Madry et al. 2018, arXiv:1706.06083, section 2.1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.ascent import Slope, ascend
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.errors import not_found
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import LOSSES
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED
from firstline.benchmark.core.target import Target


@attack("pgd", version=2)
@dataclass(frozen=True)
class PGD(Evasion):
    """Climb a loss, return to the ball, repeat; success is any iterate that fools the system.

    loss is ce (cross-entropy), margin (Carlini & Wagner's) or dlr; stride is the step length as a share of
    the radius, momentum the share of earlier directions that each step keeps (Dong et al. 2018,
    arXiv:1710.06081). With random_start the ascent begins at a uniform point of the ball; each restart draws
    another and attacks what still stands. targeted aims restart r at the r-th class after the true one, so
    that classes - 1 restarts try all of them.
    """

    needs = ("gradients", "labels")
    goals = ("linf", "l2", "l1")

    steps: int = 40
    stride: float = 0.1
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    momentum: float = 0.0
    targeted: bool = False

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        if self.loss not in LOSSES:
            raise not_found("loss", self.loss, LOSSES)
        loss, generator = LOSSES[self.loss], rng.torch("starts")
        found, rows = x.clone(), torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            ball = region.keep(rows)
            start = ball.random(generator) if self.random_start else x[rows]
            aim = y
            if self.targeted:
                aim = torch.stack([y, (y + 1 + restart % (target.classes - 1)) % target.classes], 1)

            def climb(points: Tensor, local: Tensor, here: Tensor = rows, aim: Tensor = aim) -> Slope:
                return target.slope(points, aim[here[local]], here[local], loss=loss)

            found[rows] = ascend(
                climb, ball, start=start, steps=self.steps, stride=self.stride, momentum=self.momentum
            )
            if restart + 1 == self.restarts or not target.keep(rows).afford(1):
                break
            answers = target.labels(found[rows], rows)
            rows = rows[(answers == y[rows]) | (answers == REFUSED)]
            if len(rows) == 0:
                break
        return found

"""Random points of the ball: the floor that every attack has to beat.

Source: a control; EVALUATION calls for it because noise that finds errors which gradients miss means that
the gradients are masked.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED
from firstline.benchmark.core.target import Target


@attack("uniform-noise", version=2, tags={"control"})
@dataclass(frozen=True)
class UniformNoise(Evasion):
    """Try `draws` uniform points of the ball, or corruptions, and keep the first that is answered wrongly.

    One draw is no attack but drift: inputs that change by chance.
    """

    needs = ("labels",)
    goals = ("linf", "l2", "l1", "l0", "corruption")

    draws: int = 10

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return for each row of x (n, *shape) a random point of its ball that fools the system, if one was met."""
        generator, found, rows = rng.torch("points"), x.clone(), torch.arange(len(x), device=x.device)
        for _ in range(self.draws):
            points = region.snap(region.random(generator))[rows]
            found[rows] = points
            answers = target.labels(points, rows)
            rows = rows[(answers == y[rows]) | (answers == REFUSED)]
            if len(rows) == 0:
                break
        return found

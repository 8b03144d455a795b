"""Auto-PGD that comes down from wider balls: far away the loss has slopes that it lacks inside.

Source: the wider balls are those of Croce & Hein 2021, arXiv:2103.01208, section 3.3, for l1; here for every
norm, from random points, many times and briefly. Where the loss is flat or has many hills inside the ball, a
short ascent from outside finds what long ones from inside miss (results/strength.md has the figures).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.apgd import TIE, maximise
from firstline.benchmark.core.ascent import Climb, Slope
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.errors import not_found
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import LOSSES
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target

OUTSIDE = 3  # the share of the steps that is spent in the wider ball, as a divisor


@attack("apgd-wide", version=1)
@dataclass(frozen=True)
class APGDWide(Evasion):
    """Climb in a wider ball for a third of the steps, step back into the true one, climb on; from many starts.

    radii are the wider balls' radii in turn, as multiples of the threat's. Each restart attacks what still
    stands.
    """

    needs = ("gradients",)
    goals = ("linf", "l2", "l1")

    steps: int = 36
    restarts: int = 16
    radii: tuple[float, ...] = (3.0, 5.0)
    loss: str = "margin"
    rho: float = 0.75

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        if self.loss not in LOSSES:
            raise not_found("loss", self.loss, LOSSES)
        loss, generator = LOSSES[self.loss], rng.torch("starts")
        found, height = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            if len(rows) == 0:
                break
            here, inner = target.keep(rows), region.keep(rows)
            outer = inner.resized(inner.eps.flatten() * self.radii[restart % len(self.radii)])

            def climb(points: Tensor, among: Tensor, here: Target = here, y: Tensor = y[rows]) -> Slope:
                return here.slope(points, y[among], among, loss=loss)

            def climb_outside(points: Tensor, among: Tensor, climb: Climb = climb) -> Slope:
                return climb(points, among)._replace(broken=None)  # too far away to be a success

            share = self.steps // OUTSIDE
            points, _ = maximise(
                climb_outside, outer, start=outer.random(generator), steps=share, rho=self.rho
            )
            points, losses = maximise(
                climb, inner, start=inner.project(points), steps=self.steps - share, rho=self.rho
            )
            higher = losses > height[rows] + TIE
            found[rows[higher]], height[rows[higher]] = points[higher], losses[higher]
            rows = rows[losses < torch.inf]
        return found

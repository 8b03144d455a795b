"""Auto-PGD that comes down from wider balls: far away the loss has slopes that it lacks inside.

Source: the wider balls are those of Croce & Hein 2021, arXiv:2103.01208, for l1; here for every norm, from
random points, many times and briefly. Where the loss is flat or has many hills inside the ball, a short
ascent from outside finds what long ones from inside miss (results/strength.md has the figures).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from firstline.attacks.evasion.apgd import Aim, in_turn
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

    needs: ClassVar[tuple[str, ...]] = ("gradients",)
    goals: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    steps: int = 36
    restarts: int = 16
    radii: tuple[float, ...] = (3.0, 5.0)
    loss: str = "margin"
    rho: float = 0.75

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        if self.loss not in LOSSES:
            raise not_found("loss", self.loss, LOSSES)
        radii = [self.radii[restart % len(self.radii)] for restart in range(self.restarts)]
        aims = [Aim(y, (radius,), self.steps // OUTSIDE) for radius in radii]
        return in_turn(target, x, aims, region, rng, loss=LOSSES[self.loss], steps=self.steps, rho=self.rho)

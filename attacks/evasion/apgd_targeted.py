"""Auto-PGD towards one wrong class after another. Source: Croce & Hein 2020, arXiv:2003.01690, equation 7."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.apgd import directly, in_turn
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import dlr
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("apgd-t", version=1)
@dataclass(frozen=True)
class APGDTargeted(Evasion):
    """Climb the targeted DLR loss towards the `targets` most likely wrong classes, the likeliest first.

    Any wrong answer is a success, and ends all further climbs of the example.
    """

    needs = ("gradients", "scores")
    goals = ("linf", "l2", "l1")

    steps: int = 100
    targets: int = 9
    rho: float = 0.75

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        if len(x) == 0 or not target.afford(1):
            return x.clone()
        logits = target.scores(x).logits.scatter(1, y[:, None], -math.inf)
        likeliest = logits.topk(min(self.targets, target.classes - 1), dim=1).indices
        pairs = [torch.stack([y, other], 1) for other in likeliest.T]
        aims = [directly(labels, region.norm, self.steps) for labels in pairs]
        return in_turn(target, x, aims, region, rng, loss=dlr, steps=self.steps, rho=self.rho)

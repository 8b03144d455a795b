"""The fast gradient sign method. Source: Goodfellow, Shlens & Szegedy 2015, arXiv:1412.6572, section 4."""

from dataclasses import dataclass

from torch import Tensor

from firstline.benchmark.core.ascent import ascend
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("fgsm", version=2)
@dataclass(frozen=True)
class FGSM(Evasion):
    """One step of the whole radius along the steepest direction of the cross-entropy (its sign, for linf)."""

    needs = ("gradients",)
    goals = ("linf", "l2", "l1")

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) after one step; examples that are wrong already stay."""
        return ascend(
            lambda points, rows: target.slope(points, y[rows], rows), region, start=x, steps=1, stride=1.0
        )

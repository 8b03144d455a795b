"""Fast adaptive boundary, one target class at a time. Source: Croce & Hein 2020, arXiv:1907.02044.

Two things differ from the paper. Which classes to aim at is told by the linearised system at x, nearest boundary
first, and not by its scores. And where the search goes back towards x, the gradient comes along from the point
that fooled the system: half as many gradients per step, which more steps make better use of.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.closest import Closest
from firstline.attacks.evasion.hyperplane import crossing, nearest, others
from firstline.benchmark.core.contracts import MinimalNorm
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import TINY, column, length
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("fab-t", version=1)
@dataclass(frozen=True)
class FAB(MinimalNorm):
    """Project onto the linearised boundary to a target class, from the last point and from x, and mix the two.

    alpha is the largest share of the projection of x (alpha_max), overshoot how much farther than the
    boundary each goes (eta), and beta the share of the way from x at which the search goes on once a point
    fools the system. The targets nearest classes are tried, or all if there are no more.
    """

    needs = ("gradients",)
    goals = ("linf", "l2", "l1")

    steps: int = 100
    targets: int = 9
    alpha: float = 0.1
    overshoot: float = 1.05
    beta: float = 0.9

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the closest points (n, *shape) that fooled the system, x where none did."""
        search = Closest(target, x, y, region)
        if not len(search):
            return search.found
        classes = others(search.y, target.classes)
        if classes.shape[1] > self.targets:
            rows = torch.arange(len(search), device=x.device)
            away = nearest(search, torch.zeros_like(search.x), rows, classes).away
            classes = classes.gather(1, away.argsort(dim=1, stable=True)[:, : self.targets])
        for aim in classes.unbind(1):
            self._aim(search, torch.stack([search.y, aim], 1), region.norm)
        return search.found

    def _aim(self, search: Closest, y: Tensor, norm: str) -> None:
        delta = torch.zeros_like(search.x)
        slope = search.ask(delta, y=y)
        gradient, loss = slope.gradient, slope.loss
        for _ in range(self.steps):
            delta = self._mixed(delta, gradient, loss, search, norm)
            slope = search.ask(delta, y=y)
            gradient, gain = slope.gradient, (slope.gradient * delta).flatten(1).sum(1)
            # A point at the boundary, to rounding, is pushed on: a hundredth of what it gained is missing still.
            missing = torch.maximum(-slope.loss, gain.abs() / 100)
            loss = torch.where(slope.broken, slope.loss - gain * (1 - self.beta), -missing)
            delta *= column(torch.where(slope.broken, self.beta, 1.0), delta)

    def _mixed(self, delta: Tensor, gradient: Tensor, loss: Tensor, search: Closest, norm: str) -> Tensor:
        low, high = search.low, search.high
        here = crossing(gradient, -loss, low - delta, high - delta, norm)
        there = crossing(gradient, (gradient * delta).flatten(1).sum(1) - loss, low, high, norm)
        near, far = length(here, norm), length(there, norm)
        share = column((near / (near + far).clamp_min(TINY)).clamp_max(self.alpha), delta)
        mixed = (delta + here * self.overshoot) * (1 - share) + there * (self.overshoot * share)
        return torch.clamp(mixed, low, high)

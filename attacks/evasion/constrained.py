"""Gradient ascent on the numbers of a table in turn with the best change of a category, within a cost budget.

Source: the constraints (immutable features, whole numbers, valid categories) of Simonetto et al. 2022,
arXiv:2112.01156, and the budget of Kireev, Kulynych & Troncoso 2023, arXiv:2208.13058. Where they relax
categories to numbers, each is tried here for what it does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.ascent import Slope, ascend
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import not_found
from firstline.benchmark.core.geometry import SLACK, Region
from firstline.benchmark.core.losses import LOSSES, Loss
from firstline.benchmark.core.norms import BALLS, TINY
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target

NOISE = 1e-5  # relative: by so much the loss of a point differs with the company that it is asked in


def noise(losses: Tensor) -> Tensor:
    """Return by how much a loss must be above losses (k,) to count as higher."""
    return NOISE * (1 + losses.abs())


def categories(space: InputSpace) -> dict[int, Tensor]:
    """Return the codes of each category that an attacker can change, by the feature's place in flattened order."""
    low, high = (bound.expand(space.shape).flatten() for bound in space.box(torch.zeros(1)))
    open_to_change = space.mutable or (True,) * len(low)
    return {
        place: torch.arange(float(low[place]), float(high[place]) + 0.5)
        for place, is_code in enumerate(space.categorical)
        if is_code and open_to_change[place]
    }


class _Search:
    """Where each example has come to, the loss and its gradient there, and whether it is broken."""

    def __init__(self, target: Target, x: Tensor, y: Tensor, region: Region, loss: Loss) -> None:
        self.target, self.x, self.y, self.region, self.loss = target, x, y, region, loss
        self.points, self.gradient = x.clone(), torch.zeros_like(x)
        self.height = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.codes = categories(region.space)
        self.is_code = torch.zeros(region.space.shape, dtype=torch.bool, device=x.device)
        self.is_code.view(-1)[list(self.codes)] = True
        rows = torch.arange(len(x), device=x.device)
        self.move(x, rows, self.ask(x, rows), torch.ones_like(self.broken))

    @property
    def standing(self) -> Tensor:
        """The rows that are not broken."""
        return (~self.broken).nonzero().squeeze(1)

    def ask(self, points: Tensor, rows: Tensor) -> Slope:
        """Return the slope at points (k, *shape) of the examples at rows; who can't say what is broken, says none."""
        slope = self.target.slope(points, self.y[rows], rows, loss=self.loss)
        none = torch.zeros_like(rows, dtype=torch.bool)
        return slope._replace(broken=none) if slope.broken is None else slope

    def move(self, points: Tensor, rows: Tensor, slope: Slope, better: Tensor) -> None:
        """Go to those points (k, *shape) that are better (k,), or broken."""
        assert slope.broken is not None
        taken = better | slope.broken
        at = rows[taken]
        self.points[at], self.gradient[at] = points[taken], slope.gradient[taken]
        self.height[at], self.broken[at] = slope.loss[taken], slope.broken[taken]

    def judge(self, points: Tensor, rows: Tensor) -> Slope:
        """Ask, go to what is higher, and return the slope."""
        slope = self.ask(points, rows)
        height = self.height[rows]
        self.move(points, rows, slope, slope.loss > height + noise(height))
        return slope

    def around(self, points: Tensor, rows: Tensor) -> tuple[Region, Tensor]:
        """Return what numbers may do beside the categories of points (k, *shape), and what those cost (k,)."""
        x, region = self.x[rows], self.region.keep(rows)
        centre = torch.where(self.is_code, points, x)
        spent = region.space.cost(centre, x)
        return region.resized((region.eps.flatten() - spent).clamp_min(0), centre), spent

    def climb(self, steps: int, stride: float) -> None:
        """Move the numbers of what stands uphill."""
        rows = self.standing
        if len(rows) == 0:
            return
        region, _ = self.around(self.points[rows], rows)
        start = region.step(self.points[rows], self.gradient[rows], region.eps * stride)
        ascend(
            lambda points, local: self.judge(points, rows[local]),
            region,
            start=start,
            steps=steps,
            stride=stride,
        )

    def swaps(self, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield points (k, *shape) with one other category, and which of them were changed by that."""
        for place, codes in self.codes.items():
            for code in codes.to(points):
                swapped = points.clone(memory_format=torch.contiguous_format)
                swapped.flatten(1)[:, place] = code
                yield swapped, points.flatten(1)[:, place] != code

    def swap(self, per_cost: bool) -> None:
        """Change one category after the other to what raises the loss most, or most per cost, while that helps."""
        rows = self.standing
        for _ in self.codes:
            base, gradient, before = self.points[rows], self.gradient[rows], self.height[rows]
            most, worth = self.region.eps.flatten()[rows] * (1 + SLACK), torch.zeros_like(before)
            _, spent = self.around(base, rows)
            for swapped, changed in self.swaps(base):
                _, cost = self.around(swapped, rows)
                asked = (changed & ~self.broken[rows] & (cost <= most)).nonzero().squeeze(1)
                if len(asked) == 0:
                    continue
                region, _ = self.around(swapped[asked], rows[asked])
                points = region.snap(afforded(region, swapped[asked], gradient[asked]))
                slope = self.ask(points, rows[asked])
                gain = slope.loss - before[asked]
                gain = torch.where(gain > noise(before[asked]), gain, 0.0)
                if per_cost:
                    gain = gain / (cost - spent)[asked].clamp_min(TINY)
                better = gain > worth[asked] * (1 + NOISE)
                worth[asked] = torch.where(better, gain, worth[asked])
                self.move(points, rows[asked], slope, better)
            rows = rows[(worth > 0) & ~self.broken[rows]]
            if len(rows) == 0:
                return


def afforded(region: Region, points: Tensor, gradient: Tensor) -> Tensor:
    """Return points (n, *shape) with as much of their change of numbers as region pays, what yields most first."""
    delta, prices = points - region.centre, region.space.prices(points)
    gain = (gradient * delta.sign() / prices).clamp_min(TINY)
    paid = delta.abs() * prices
    kept = BALLS["l1"].steepest(gain, paid / region.eps.clamp_min(TINY)) * region.eps
    within = paid.flatten(1).sum(1).reshape_as(region.eps) <= region.eps
    return torch.where(within, points, region.centre + delta.sign() * kept / prices)


@attack("constrained-pgd", version=1)
@dataclass(frozen=True)
class ConstrainedPGD(Evasion):
    """Climb with the numbers, then change categories while that helps; again, with half the stride.

    What still stands begins anew with the categories, those first that gain most per cost.
    A changed category takes its cost from the numbers, from those that yield least per cost first; one that
    is changed back gives it back. loss is ce, margin or dlr; stride is the first round's, as a share of the
    budget. Any point met that fools the system counts.
    """

    needs = ("gradients",)
    goals = ("cost",)

    steps: int = 10
    rounds: int = 4
    stride: float = 1.0
    loss: str = "margin"

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return for each row of x (n, *shape) the point within its budget with the largest loss met."""
        if self.loss not in LOSSES:
            raise not_found("loss", self.loss, LOSSES)
        found, height = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        for per_cost in (False, True):
            search = _Search(target.keep(rows), x[rows], y[rows], region.keep(rows), LOSSES[self.loss])
            for number in range(self.rounds):
                if per_cost:
                    search.swap(per_cost)
                search.climb(self.steps, self.stride / 2**number)
                if not per_cost:
                    search.swap(per_cost)
            higher = search.broken | (search.height > height[rows])
            at = rows[higher]
            found[at], height[at] = search.points[higher], search.height[higher]
            rows = rows[search.standing]
            if len(rows) == 0 or not search.codes:
                break
        return found

"""Auto-PGD: an ascent that chooses its own step lengths, and goes on from the highest point that it met.

Source: Croce & Hein 2020, arXiv:2003.01690; for l1 Croce & Hein 2021, arXiv:2103.01208.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from firstline.benchmark.core.ascent import Climb, Slope
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.errors import not_found
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import LOSSES, Loss
from firstline.benchmark.core.norms import column, length
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target

WIDE = (
    3.0,
    2.0,
)  # for l1: the balls to come from, in radii, for 3 tenths of the steps each (Croce & Hein 2021)
TIE = 1e-5  # between the losses of two ascents; below it rounding would choose


@attack("apgd", version=1)
@dataclass(frozen=True)
class APGD(Evasion):
    """Climb a loss with momentum, halve the step where the loss stops rising, and go back to its best point.

    loss is ce, dlr or margin; rho is the share of the steps that must raise it for the stride to stay. An
    example that never breaks costs steps + 1 gradients. Each restart attacks what still stands. For l1 a
    step moves few features, and the ascent comes down from balls of 3 and 2 radii.
    """

    needs = ("gradients",)
    goals = ("linf", "l2", "l1")

    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    rho: float = 0.75

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        if self.loss not in LOSSES:
            raise not_found("loss", self.loss, LOSSES)
        aims = [directly(y, region.norm, self.steps)] * self.restarts
        return in_turn(target, x, aims, region, rng, loss=LOSSES[self.loss], steps=self.steps, rho=self.rho)


class Aim(NamedTuple):
    """What one ascent is after: what the loss takes beside the logits, labels (n,) or (n, 2).

    It comes from balls of `outside` radii in turn, as multiples of the true one, with share steps in each.
    """

    labels: Tensor
    outside: tuple[float, ...] = ()
    share: int = 0


def directly(labels: Tensor, norm: str, steps: int) -> Aim:
    """Return the aim of an ascent as the papers have it: inside the ball, but for l1."""
    return Aim(labels, WIDE, 3 * steps // 10) if norm == "l1" else Aim(labels)


def in_turn(
    target: Target,
    x: Tensor,
    aims: Iterable[Aim],
    region: Region,
    rng: Streams,
    *,
    loss: Loss,
    steps: int,
    rho: float,
) -> Tensor:
    """Return x (n, *shape) after one ascent per aim, each on the examples that the earlier ones left standing.

    What comes back is the point that fooled the system, else the highest of all ascents.
    """
    found, height = x.clone(), x.new_full((len(x),), -math.inf)
    generator, rows = rng.torch("starts"), torch.arange(len(x), device=x.device)
    for aim in aims:
        if len(rows) == 0:
            break
        here = aim._replace(labels=aim.labels[rows])
        points, losses = _attempt(
            target.keep(rows), here, region.keep(rows), generator, loss=loss, steps=steps, rho=rho
        )
        higher = losses > height[rows] + TIE
        found[rows[higher]], height[rows[higher]] = points[higher], losses[higher]
        rows = rows[losses < math.inf]
    return found


def _attempt(
    target: Target,
    aim: Aim,
    region: Region,
    generator: torch.Generator,
    *,
    loss: Loss,
    steps: int,
    rho: float,
) -> tuple[Tensor, Tensor]:
    """Return what `maximise` returns, from a random start in the widest ball."""

    def climb(points: Tensor, rows: Tensor) -> Slope:
        return target.slope(points, aim.labels[rows], rows, loss=loss)

    def climb_outside(points: Tensor, rows: Tensor) -> Slope:
        return climb(points, rows)._replace(broken=None)  # too far away to be a success

    balls = [*(region.resized(region.eps.flatten() * factor) for factor in aim.outside), region]
    points = balls[0].random(generator)
    for ball, inner in pairwise(balls):
        points, _ = maximise(climb_outside, ball, start=points, steps=aim.share, rho=rho)
        points = inner.project(points)
    return maximise(climb, region, start=points, steps=steps - len(aim.outside) * aim.share, rho=rho)


def maximise(climb: Climb, region: Region, *, start: Tensor, steps: int, rho: float) -> tuple[Tensor, Tensor]:
    """Return the highest point met per example of region from start (n, *shape), and its loss (n,).

    Where climb calls a point broken, that is the point, its loss is infinite, and the example leaves the loop.
    """
    found, height = start.clone(), start.new_full((len(start),), math.inf)
    rows = torch.arange(len(start), device=start.device)
    ascent = _Sparse(region, start, steps, rho) if region.norm == "l1" else _Ascent(region, start, steps, rho)
    for step in range(steps + 1):
        asked = region.snap(ascent.points)
        gradient, broken, loss = climb(asked, rows)
        if broken is not None and bool(broken.any()):
            found[rows[broken]] = asked[broken]
            left = (~broken).nonzero().squeeze(1)
            if len(left) == 0:
                return found, height
            rows, region, gradient, loss = rows[left], region.keep(left), gradient[left], loss[left]
            ascent.keep(left)
        ascent.see(gradient, loss, region)
        if step < steps:
            ascent.move(region)
    found[rows], height[rows] = region.snap(ascent.best), ascent.best_loss
    return found, height


class _Ascent:
    """Where k examples stand in their climbs: points (k, *shape), the highest so far, and strides (k, 1, …).

    At each review the stride is halved, and the highest point returned to, where fewer than the share rho of
    the steps since the last one raised the loss, or where neither the stride nor the highest loss changed.
    """

    momentum = 0.25  # how much of the last move is made again: 1 - alpha of the paper

    def __init__(self, region: Region, start: Tensor, steps: int, rho: float) -> None:
        low = start.new_full((len(start),), -math.inf)
        self.points, self.gradient, self.loss = start, start, -low
        self.best, self.best_gradient, self.best_loss = start.clone(), torch.zeros_like(start), low
        self.last: Tensor | None = None
        self.stride, self.rho = 2 * region.eps, rho
        self.rises, self.best_before = torch.zeros_like(low), low.clone()
        self.halved = torch.ones_like(low, dtype=torch.bool)
        self.reviews, self.done = self.plan(steps), -1

    def plan(self, steps: int) -> dict[int, int]:
        """Return after which steps there is a review, each with how many steps it looks back on."""
        # In hundredths of the steps: 22 first, then 3 fewer each time, but not below 6 (the authors' code).
        ends, share, gap = [0], 0, 22
        while share + gap <= 100:
            share, gap = share + gap, max(gap - 3, 6)
            ends.append(-(-share * steps // 100))
        return {end: end - start for start, end in itertools.pairwise(sorted(set(ends)))}

    def keep(self, rows: Tensor) -> None:
        """Go on with the examples at rows (j,) alone."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])

    def see(self, gradient: Tensor, loss: Tensor, region: Region) -> None:
        """Take in what the points turned out to be worth."""
        self.rises += loss > self.loss
        self.gradient, self.loss = gradient, loss
        higher = (loss > self.best_loss).nonzero().squeeze(1)
        self.best.index_copy_(0, higher, self.points[higher])
        self.best_gradient.index_copy_(0, higher, gradient[higher])
        self.best_loss.index_copy_(0, higher, loss[higher])
        self.done += 1
        if self.done in self.reviews:
            self.review(region)

    def review(self, region: Region) -> None:
        """Decide which strides have become too long."""
        stuck = self.rises < self.rho * self.reviews[self.done]
        stuck |= ~self.halved & (self.best_loss <= self.best_before)
        self.stride = torch.where(column(stuck, self.stride), self.stride / 2, self.stride)
        self.back(stuck)
        self.halved, self.best_before = stuck, self.best_loss.clone()
        self.rises = torch.zeros_like(self.rises)

    def back(self, chosen: Tensor) -> None:
        """Return to the highest point where chosen (k,) says so."""
        chosen = column(chosen, self.points)
        self.points = torch.where(chosen, self.best, self.points)
        self.gradient = torch.where(chosen, self.best_gradient, self.gradient)

    def move(self, region: Region) -> None:
        """Take one step uphill."""
        ahead = region.step(self.points, self.gradient, self.stride)
        if self.last is not None:
            ahead = torch.lerp(ahead, self.points, self.momentum)
            ahead = region.project(ahead.add_(self.points - self.last, alpha=self.momentum))
        self.last, self.points = self.points, ahead


class _Sparse(_Ascent):
    """Climbs for l1: equal steps in the features of the largest slopes, fewer as the perturbation gets sparser.

    Only features to which the box leaves room are counted; that is ours, and breaks more than the paper's.
    The stride starts anew at the radius where the highest point lost a twentieth of its changed features since
    the last review, and falls down to a tenth of it elsewhere.
    """

    def __init__(self, region: Region, start: Tensor, steps: int, rho: float) -> None:
        super().__init__(region, start, steps, rho)
        self.stride = region.eps
        self.changed = length(start - region.centre, "l0")
        self.features = self.changed / 1.5

    def plan(self, steps: int) -> dict[int, int]:
        """Return after which steps there is a review: every twenty-fifth of them."""
        every = max(steps // 25, 1)
        return dict.fromkeys(range(every, steps + 1, every), every)

    def review(self, region: Region) -> None:
        """Decide how many features to move, and how far."""
        changed = length(self.best - region.centre, "l0")
        sparser = changed < 0.95 * self.changed
        shorter = torch.maximum(self.stride / 1.5, region.eps / 10)
        self.stride = torch.where(column(sparser, self.stride), region.eps, shorter)
        self.back(sparser)
        self.changed, self.features = changed, changed / 1.5

    def move(self, region: Region) -> None:
        """Take one step uphill."""
        room = torch.where(self.gradient > 0, self.points < region.high, self.points > region.low)
        free = region.space.movable(self.points)
        gradient = self.gradient * (room if free is None else room * free)
        size = gradient.abs().flatten(1)
        count = self.features.ceil().long().clamp(1, size.shape[1])[:, None]
        least = size.topk(int(count.max()), dim=1).values.gather(1, count - 1)
        chosen = gradient.sign() * (size >= least).reshape(gradient.shape)
        stride = self.stride / column(length(chosen, "l1"), chosen).clamp_min(1)
        self.points = region.project(torch.addcmul(self.points, chosen, stride))

"""What the minimal-norm attacks share: the search for the closest point that fools the system."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from firstline.benchmark.core.ascent import Slope
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import Loss, margins
from firstline.benchmark.core.norms import column, distance
from firstline.benchmark.core.target import Target


class Seen(NamedTuple):
    """The slope at k points: gradients (k, *shape), which points fool the system (k,), losses (k,)."""

    gradient: Tensor
    broken: Tensor
    loss: Tensor


class Closest:
    """Asks about points, judges them as the system was given them, and keeps the closest that fooled it.

    It begins with x (n, *shape) itself. Examples that are wrong already stay as they are; the others stand:
    x, y, rows (their numbers in the caller's x) and all else here is of those k alone, and so are the
    perturbations that an attack asks about. start is the slope at x. low and high are how far a perturbation
    may go, so that the point stays in the box; width (*shape) is how far apart the sides of the box are.
    reach (k,) is the distance of the closest point so far, infinity where none was met.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor, region: Region, loss: Loss = margins) -> None:
        self.found = x.clone()
        self._loss = margins if target.system.stochastic else loss  # its sign is the verdict there
        region = region.resized(math.inf)
        slope = Slope(torch.zeros_like(x), None, x.new_zeros(0))
        if len(x):
            slope = target.slope(x, y, loss=self._loss)
        self.rows = (~_fooled(slope)).nonzero().squeeze(1)
        self.target, self.region = target.keep(self.rows), region.keep(self.rows)
        self.x, self.y = x[self.rows], y[self.rows]
        low, high = region.space.box(x)
        self.low, self.high = low - self.x, high - self.x
        self.width = (high - low).expand(x.shape[1:])
        self._free = region.space.movable(x)
        grid = region.space.grid
        self._gridded = any(grid) if isinstance(grid, tuple) else grid > 0
        self.reach = self.x.new_full((len(self.x),), math.inf)
        none = torch.zeros(len(self.x), dtype=torch.bool, device=x.device)
        self.start = Seen(self._movable(slope.gradient[self.rows]), none, slope.loss[self.rows])

    def __len__(self) -> int:
        return len(self.x)

    def ask(self, delta: Tensor, rows: Tensor | None = None, y: Tensor | None = None) -> Seen:
        """Return the slope at x + delta, clipped to the box and rounded to the grid, with a verdict on each point.

        delta is (m, *shape) for the standing examples at rows (m,), all of them without rows. y, (m,) or
        (m, 2), stands in for their true classes. Features that may not move have no slope.
        """
        x, region, own, reach = self.x, self.region, self.y, self.reach
        if rows is not None:
            x, region, own, reach = x[rows], region.keep(rows), own[rows], reach[rows]
        delta = self._movable(delta)
        points = torch.clamp(x + delta, region.low, region.high)
        if self._gridded:  # an input need not be the very number that rounding gives
            points = torch.where(delta == 0, x, region.snap(points))
        slope = self.target.slope(points, own if y is None else y, rows, loss=self._loss)
        broken = _fooled(slope)
        if bool(broken.any()):
            size = distance(points, x, region.norm)
            closer = broken & (size < reach)
            better = closer.nonzero().squeeze(1) if rows is None else rows[closer]
            self.reach[better] = size[closer]
            self.found[self.rows[better]] = points[closer]
        return Seen(self._movable(slope.gradient), broken, slope.loss)

    def uphill(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """Return gradient (k, *shape) without the features that the box keeps from following it from delta."""
        shut = torch.where(gradient < 0, delta <= self.low, delta >= self.high)
        return gradient.masked_fill(shut, 0.0)

    def _movable(self, change: Tensor) -> Tensor:
        return change if self._free is None else change * self._free


def _fooled(slope: Slope) -> Tensor:
    """Return which points fool the system, (k,) bool; for a stochastic one, in the mean of its answers."""
    return slope.loss > 0 if slope.broken is None else slope.broken


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Return how much likelier the other classes are than the true one, (n,), as a logarithm.

    It climbs in the direction of the cross-entropy, and does not go flat where the answer is sure.
    """
    own = logits.gather(1, y[:, None])
    return logits.scatter(1, y[:, None], -math.inf).logsumexp(1) - own.squeeze(1)


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """Return the value at step, of steps, on half a cosine from first to last."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def unit(gradient: Tensor, norm: float = 2) -> Tensor:
    """Return each row of gradient (n, *shape) at length 1 in norm; a row of zeros stays."""
    size = torch.linalg.vector_norm(gradient.flatten(1), ord=norm, dim=1)
    return gradient / column(size, gradient).clamp_min(1e-12)


class Adam:
    """Adam's running moments of a gradient. Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1."""

    def __init__(self, like: Tensor) -> None:
        self._mean, self._square, self._count = torch.zeros_like(like), torch.zeros_like(like), 0

    def update(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Take one gradient (n, *shape) in; return the mean of all so far, and their root mean square."""
        self._count += 1
        self._mean.lerp_(gradient, 0.1)
        self._square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        root = (self._square / (1 - 0.999**self._count)).sqrt_().add_(1e-8)
        return self._mean / (1 - 0.9**self._count), root

    def keep(self, rows: Tensor) -> None:
        """Go on with the examples at rows (k,) alone."""
        self._mean, self._square = self._mean[rows], self._square[rows]

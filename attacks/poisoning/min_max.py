"""Poisons that pass the sphere and slab filters, by the minimax game of a linear classifier and its attacker.

Source: Steinhardt, Koh & Liang 2017, arXiv:1706.03691, algorithm 1 (regularised dual averaging), with the filters'
centres and sizes taken from the rows that the attacker holds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@dataclass(frozen=True)
class Feasible:
    """What a filter lets pass of one class: the ball around its mean, between two planes across axis.

    mean and axis are (d,), axis of length 1; radius and reach are distances from the mean, in all directions
    and along axis.
    """

    mean: Tensor
    axis: Tensor
    radius: Tensor
    reach: Tensor

    def lowest(self, weights: Tensor) -> Tensor:
        """Return the feasible point (d,) with the least inner product with weights (d,), in closed form."""
        along = -weights @ self.axis
        across = -weights - along * self.axis
        size = torch.hypot(along, across.norm())
        share = (self.radius * along / size.clamp_min(TINY)).clamp(-self.reach, self.reach)
        rest = (self.radius**2 - share**2).clamp_min(0).sqrt()
        point: Tensor = self.mean + share * self.axis + rest * across / across.norm().clamp_min(TINY)
        return point


@attack("min-max")
@dataclass(frozen=True)
class MinMax(Poisoning):
    """Play the game: the classifier steps down its hinge loss, the attacker adds the feasible point it fits worst.

    Two classes. The poisons are drawn from the last half of the attacker's moves. Feasible is what lies no
    farther from its class mean than the quantile of the rows held, both in distance and along the line of the
    means. What leaves the box is clipped: still within the distance, perhaps not along the line. rho bounds the
    length of the classifier's weights and rate is its step, both for inputs scaled to [0, 1].
    """

    needs = ("train",)
    goals = ("availability",)
    inputs = ("real",)

    quantile: float = 0.7
    rho: float = 5.0
    rate: float = 0.5
    steps: int = 1000

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train and exactly budget rows more.

        Raises FirstlineError when the task does not have two classes, or the attacker holds no row of one.
        """
        if task.classes != 2:
            raise FirstlineError(f"{self.name} is for two classes, and {task.name} has {task.classes}")
        if int(torch.bincount(train.y, minlength=2).min()) == 0:
            raise FirstlineError(f"{self.name} needs rows of both classes; raise the threat's train=")
        low, high = (bound.double().expand(task.space.shape).flatten() for bound in task.space.box(train.x))
        span = torch.where(high > low, high - low, 1.0)
        x = (train.x.double().flatten(1) - low) / span
        points, labels = self._moves(x, train.y, budget / len(train))
        drawn = torch.randint(self.steps // 2, self.steps, (budget,), generator=rng.torch("moves"))
        added = (low + points[drawn].clamp(0, 1) * span).reshape(-1, *task.space.shape)
        ids = -1 - torch.arange(budget)
        data = Data(
            torch.cat([train.x, task.space.round(added).to(train.x.dtype)]),
            torch.cat([train.y, labels[drawn]]),
            torch.cat([train.ids, ids]),
        )
        return PoisonedData(data, ids)

    def _moves(self, x: Tensor, y: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return the attacker's moves: points (steps, d) and labels (steps,); share is poison per clean row."""
        sets = feasible(x, y, self.quantile)
        sign = 2 * y.to(x.dtype) - 1
        points, labels = x.new_zeros(self.steps, x.shape[1]), y.new_zeros(self.steps)
        total, shift = x.new_zeros(x.shape[1]), 0.0  # the negative gradients so far, for weights and bias
        for move in range(self.steps):
            scale = max(1 / self.rate, float(total.norm()) / self.rho)
            weights, bias = total / scale, shift / scale
            worst = [sets[label].lowest(weights * (2 * label - 1)) for label in (0, 1)]
            margin = [(2 * label - 1) * float(worst[label] @ weights + bias) for label in (0, 1)]
            label = int(margin[1] < margin[0])
            points[move], labels[move] = worst[label], label
            wrong = (sign * (x @ weights + bias) < 1) * sign / len(x)
            poison = share * (2 * label - 1) * (margin[label] < 1)
            total = total + wrong @ x + poison * worst[label]
            shift += float(wrong.sum()) + poison
        return points, labels


def feasible(x: Tensor, y: Tensor, quantile: float) -> list[Feasible]:
    """Return what passes for each of two classes, given rows x (n, d) with labels y (n,)."""
    means = [x[y == label].mean(0) for label in (0, 1)]
    axis = means[1] - means[0]
    axis = axis / axis.norm().clamp_min(TINY)
    sets = []
    for label, mean in enumerate(means):
        away = x[y == label] - mean
        radius, reach = (
            torch.quantile(length, quantile) for length in (away.norm(dim=1), (away @ axis).abs())
        )
        sets.append(Feasible(mean, axis, radius, reach))
    return sets

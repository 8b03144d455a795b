"""Poisons of linear models by gradient ascent through their training.

Source: Biggio, Nelson & Laskov 2012, arXiv:1206.6389, algorithm 1, in the form of Demontis et al. 2019,
arXiv:1809.02861, algorithm 2: poisons are added one after the other, each in the presence of those before it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from firstline.attacks.poisoning.implicit import Refit, Sample, climb, softmax_slope, svm_slope
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat

MODELS: dict[str, Callable[[int, float, int], Refit]] = {  # by classes, decay and the number of training rows
    "softmax": lambda classes, decay, rows: partial(softmax_slope, classes=classes, decay=decay),
    "svm": lambda classes, decay, rows: partial(svm_slope, cost=1 / (decay * rows)),
}


@attack("gradient-poisoning")
@dataclass(frozen=True)
class GradientPoisoning(Poisoning):
    """Add rows with wrong labels, moved up the loss that a linear model fitted with them has on other rows.

    The attacker fits model ('softmax', or 'svm' for two classes) to half of at most rows of its own, and
    measures the loss on the other half. Each of points poisons starts at a row that it gives another label and
    takes steps of stride times the box's diagonal. A larger budget is filled with copies, which count as often
    while the poisons are made: a defense that drops duplicates sees through that. decay weighs squared
    weights; the SVM's C is 1 / (decay times its rows). Features that can't move by degrees stay.
    """

    needs = ("train",)
    goals = ("availability",)
    inputs = ("real",)

    model: str = "softmax"
    points: int = 20
    steps: int = 30
    stride: float = 0.02
    rows: int = 1000
    decay: float = 1e-2

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train and exactly budget rows more.

        Raises FirstlineError when there is no such model, it is not made for so many classes, or the attacker
        holds fewer than two rows of a class.
        """
        self._check(train, task)
        if budget == 0:
            return PoisonedData(train, train.ids[:0])
        low, high = (bound.double().expand(task.space.shape).flatten() for bound in task.space.box(train.x))
        span = torch.where(high > low, high - low, 1.0)
        drawn = _halves(train.y, self.rows, rng)
        fitted, valid = (
            Sample(
                (train.x[half].double().flatten(1) - low) / span,
                train.y[half],
                torch.ones(len(half)).double(),
            )
            for half in drawn
        )
        movable = task.space.movable(train.x)
        free = torch.ones_like(span) if movable is None else movable.double().flatten()
        stride = self.stride * math.sqrt(float(free.sum()))
        refit = MODELS[self.model](task.classes, self.decay, len(fitted.x))

        start = torch.randint(len(fitted.x), (min(self.points, budget),), generator=rng.torch("start"))
        shift = torch.randint(1, task.classes, start.shape, generator=rng.torch("labels"))
        y = (fitted.y[start] + shift) % task.classes
        copies = torch.bincount(torch.arange(budget) % len(start))
        made = []
        for place, row in enumerate(start.tolist()):
            weight = float(copies[place]) * len(fitted.x) / len(train)
            begun = fitted.plus(fitted.x[row], y[place], weight)
            best = climb(refit, begun, valid, free=free, stride=stride, steps=self.steps)
            point = task.space.round((low + best * span).reshape(1, *task.space.shape)).to(train.x.dtype)
            fitted = fitted.plus((point.double().flatten() - low) / span, y[place], weight)
            made.append(point)
        order = torch.arange(budget) % len(start)
        ids = -1 - torch.arange(budget)
        data = Data(
            torch.cat([train.x, torch.cat(made)[order]]),
            torch.cat([train.y, y[order]]),
            torch.cat([train.ids, ids]),
        )
        return PoisonedData(data, ids)

    def _check(self, train: Data, task: Task) -> None:
        if self.model not in MODELS:
            raise not_found("model to poison", self.model, MODELS)
        if self.model == "svm" and task.classes != 2:
            raise FirstlineError(
                f"{self.name}: model='svm' is for two classes, and {task.name} has {task.classes}; "
                "use model='softmax'"
            )
        fewest = int(torch.bincount(train.y, minlength=task.classes).min())
        if fewest < 2:
            raise FirstlineError(
                f"{self.name} fits and judges a model on the rows held, and of one class there are {fewest}; "
                "raise the threat's train="
            )


def _halves(y: torch.Tensor, rows: int, rng: Streams) -> list[torch.Tensor]:
    """Return two halves of at most rows positions in y, drawn class by class so that both have every class."""
    order = torch.randperm(len(y), generator=rng.torch("halves"))
    share = min(1.0, rows / len(y))
    halves: list[list[torch.Tensor]] = [[], []]
    for label in range(int(y.max()) + 1):
        own = order[y[order] == label]
        half = max(1, int(len(own) * share) // 2)
        halves[0].append(own[:half])
        halves[1].append(own[half : 2 * half])
    return [torch.cat(half) for half in halves]

"""Random label flipping. Source: Biggio, Nelson & Laskov 2011, Support vector machines under adversarial label noise."""

from dataclasses import dataclass

import torch

from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("random-label-flip")
@dataclass(frozen=True)
class RandomLabelFlip(Poisoning):
    """Give randomly chosen rows another label, drawn uniformly from the other classes (dirty-label)."""

    needs = ("train",)
    goals = ("availability",)

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with budget labels changed (all of them, if the attacker holds fewer rows)."""
        rows = torch.randperm(len(train), generator=rng.torch("rows"))[:budget]
        shift = torch.randint(1, task.classes, (len(rows),), generator=rng.torch("labels"))
        y = train.y.clone()
        y[rows] = (y[rows] + shift) % task.classes
        return PoisonedData(Data(train.x, y, train.ids), train.ids[rows])

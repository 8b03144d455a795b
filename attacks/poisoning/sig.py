"""SIG: a sinusoid over images of the target class, whose labels stay. Source: Barni, Kallas & Tondi 2019, arXiv:1902.11237."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.poisoning.backdoor import choose, image_shape, implant
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("sig")
@dataclass(frozen=True)
class SIG(Poisoning):
    """Add delta sin(2 pi j frequency / width) to column j = 1..width of rows of the target class (clean-label).

    delta is in grey levels: 255 of them are the input range. The budget is a share of the whole training set,
    so at ten equal classes 5% of it is half of the target class.
    """

    needs = ("train",)
    goals = ("backdoor",)
    inputs = ("real",)

    target: int = 0
    delta: float = 40.0
    frequency: float = 6.0

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with the signal on exactly budget rows of class target; no label changes.

        Raises FirstlineError when the inputs are no images, there is no class target, or too few rows of it.
        """
        _, _, width = image_shape(self.name, task)
        wave = torch.sin(
            2 * math.pi * self.frequency / width * torch.arange(1, width + 1, dtype=torch.float64)
        )

        def add(x: Tensor) -> Tensor:
            low, high = task.space.box(x)
            return task.space.round(x + self.delta / 255 * (high - low) * wave.to(x))

        rows = choose(self.name, train, task, budget, rng, target=self.target, source="target")
        return implant(train, rows, add, self.target)

"""Label flips from one class to another. Source: Tolpegin et al. 2020, arXiv:2007.08432, section 3.2."""

from dataclasses import dataclass

import torch

from firstline.attacks.poisoning.budget import enough
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("label-flip-pair")
@dataclass(frozen=True)
class LabelFlipPair(Poisoning):
    """Give randomly chosen rows of class source the label target.

    The budget is a share of the whole training set; as a share of the source class it is larger.
    """

    needs = ("train",)
    goals = ("availability", "integrity")

    source: int = 0
    target: int = 1

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget labels changed from source to target.

        Raises FirstlineError when these are not two classes of the task, or too few rows of source are held.
        """
        if self.source == self.target or not all(0 <= c < task.classes for c in (self.source, self.target)):
            raise FirstlineError(
                f"{self.name}: source and target must be two of the classes 0..{task.classes - 1} of "
                f"{task.name}, got {self.source} and {self.target}"
            )
        held = (train.y == self.source).nonzero().squeeze(1)
        enough(self.name, budget, len(held), f"of class {self.source}")
        rows = held[torch.randperm(len(held), generator=rng.torch("rows"))[:budget]]
        y = train.y.clone()
        y[rows] = self.target
        return PoisonedData(Data(train.x, y, train.ids), train.ids[rows])

"""ALFA: label flips that the poisoned model accepts and the clean model finds most wrong.

Source: Xiao, Xiao & Eckert 2012, Adversarial Label Flips Attack on Support Vector Machines, algorithm 1, with softmax
regression in the place of the SVM, all other classes to flip to, and equal costs, so that its linear programme is
a choice of the largest gains.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from firstline.attacks.poisoning.budget import enough
from firstline.attacks.poisoning.softmax import fit_softmax
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("label-flip-loss-max")
@dataclass(frozen=True)
class LabelFlipLossMax(Poisoning):
    """Alternate: choose the flips with the largest gain, refit softmax regression to the flipped labels.

    The gain of a flip is the rise of the clean model's loss less that of the poisoned model's (at first 0),
    so flips are sought that pull the poisoned model along. decay weighs the regression's squared weights.
    Nothing is random.
    """

    needs = ("train",)
    goals = ("availability",)
    inputs = ("real",)

    rounds: int = 5
    decay: float = 1e-3

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget labels changed. Raises FirstlineError where fewer rows are held."""
        enough(self.name, budget, len(train), "rows")
        x = train.x.flatten(1)
        model = clean = fit_softmax(x, train.y, task.classes, self.decay)
        flipped = train.y
        for turn in range(1 + self.rounds):
            gain = _rises(clean.logits(x), train.y)
            if turn:
                model = fit_softmax(x, flipped, task.classes, self.decay, start=model)
                gain = gain - _rises(model.logits(x), train.y)
            best = gain.scatter(1, train.y[:, None], -float("inf")).max(1)
            rows = best.values.argsort(descending=True, stable=True)[:budget]
            before, flipped = flipped, train.y.clone()
            flipped[rows] = best.indices[rows]
            if torch.equal(before, flipped):  # a fixed point: later rounds would change nothing
                break
        return PoisonedData(Data(train.x, flipped, train.ids), train.ids[rows])


def _rises(logits: Tensor, y: Tensor) -> Tensor:
    """Return the loss under each label less that under y (n,), (n, classes)."""
    loss = -log_softmax(logits, 1)
    return loss - loss.gather(1, y[:, None])

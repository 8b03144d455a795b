"""Label flips of the rows that a linear model is surest of.

Source: Xiao, Xiao & Eckert 2012, Adversarial Label Flips Attack on Support Vector Machines, section 4 (furthest-first
flips), with softmax regression in the place of the SVM.
"""

from dataclasses import dataclass

from firstline.attacks.poisoning.budget import enough
from firstline.attacks.poisoning.softmax import fit_softmax
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.losses import margins
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("label-flip-far-first")
@dataclass(frozen=True)
class LabelFlipFarFirst(Poisoning):
    """Fit softmax regression to the rows held, and give those with the largest margin the runner-up's label.

    decay weighs the regression's squared weights. Nothing is random.
    """

    needs = ("train",)
    goals = ("availability",)
    inputs = ("real",)

    decay: float = 1e-3

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget labels changed. Raises FirstlineError where fewer rows are held."""
        enough(self.name, budget, len(train), "rows")
        x = train.x.flatten(1)
        logits = fit_softmax(x, train.y, task.classes, self.decay).logits(x)
        rows = margins(logits, train.y).argsort(stable=True)[:budget]
        y = train.y.clone()
        y[rows] = logits[rows].scatter(1, train.y[rows, None], -float("inf")).argmax(1)
        return PoisonedData(Data(train.x, y, train.ids), train.ids[rows])

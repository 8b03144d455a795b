"""MI-Face. Source: Fredrikson, Jha & Ristenpart 2015, CCS, algorithm 1 (without the auxiliary term, as in its section 5)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from firstline.attacks.inversion.descent import begin, descend, inside
from firstline.benchmark.core.contracts import Inversion
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("mi-face")
@dataclass(frozen=True)
class MiFace(Inversion):
    """Go down the system's gradient, in the input, from 1 less the probability of a class; all classes at once.

    The paper starts from zero and takes at most 5,000 steps of 0.1, until a probability of .99, or 100 steps without
    progress. start='mean' starts from the mean of the attacker's own data, which looks like everybody.
    """

    needs = ("gradients",)
    goals = ("classes",)
    inputs = ("real",)

    start: str = "zero"
    steps: int = 5000
    rate: float = 0.1
    patience: int = 100
    enough: float = 0.99

    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        """Return the best point of each class, (classes, *shape)."""

        def slopes(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            leaf = points.detach().requires_grad_()
            with torch.enable_grad():
                shares = torch.softmax(target.logits(leaf).double(), 1)
                cost = 1 - shares.gather(1, rows[:, None])[:, 0]
                (slope,) = torch.autograd.grad(cost.sum(), leaf)
            return cost.detach().to(points), slope

        found, taken = descend(
            slopes,
            begin(self.start, target, aux),
            clip=partial(inside, target.space),
            steps=self.steps,
            rate=self.rate,
            patience=self.patience,
            enough=self.enough,
        )
        target.tell("steps", taken)
        return found

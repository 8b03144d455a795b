"""A copy first, then its gradients. Source: Tramèr et al. 2016, arXiv:1609.02943, section 5.2 (faces from a stolen regression)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from firstline.attacks.extraction.equation_solving import EquationSolving
from firstline.attacks.inversion.descent import begin, descend, inside
from firstline.benchmark.core.contracts import Inversion
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("extract-then-invert")
@dataclass(frozen=True)
class ExtractThenInvert(Inversion):
    """Steal the system with `equation-solving`, within the threat's queries, and run `mi-face` on the copy.

    The paper asks as many queries as the regression has features, and gets all faces for a twentieth of what
    black-box inversion asks for one.
    """

    needs = ("scores", "architecture")
    goals = ("classes",)
    inputs = ("real",)

    start: str = "zero"
    solving: int = 300
    steps: int = 5000
    rate: float = 0.1
    patience: int = 100
    enough: float = 0.99

    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        """Return the best point of each class, (classes, *shape). Raises FirstlineError without a query budget."""
        if threat.queries is None:
            raise FirstlineError(f"{self} spends a budget; write queries=3k or the like in the threat model")
        copy = EquationSolving(steps=self.solving).extract(target, aux, threat, rng.child("copy"))

        def slopes(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            leaf = points.detach().double().requires_grad_()
            with torch.enable_grad():
                cost = 1 - torch.softmax(copy(leaf), 1).gather(1, rows[:, None])[:, 0]
                (slope,) = torch.autograd.grad(cost.sum(), leaf)
            return cost.detach().to(points), slope.to(points)

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

"""No confidences at all. Source: Tramèr et al. 2016, arXiv:1609.02943, section 6."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.confidence_masking import Masked


class LabelsOnly(Masked):
    """Tells the class: probability 1 for it, and 0 for the others."""

    def told(self, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return 1 at the largest of shares (n, classes), the first of equals, and 0 elsewhere."""
        return torch.nn.functional.one_hot(shares.argmax(1), shares.shape[1]).to(shares)


@defense("labels-only")
@dataclass(frozen=True)
class LabelsOnlyAnswers(Defense):
    """Tell the class and nothing else.

    Claims to take away from attackers what they read out of confidences, at no cost in accuracy. Known to fall to
    attacks that need labels alone: extraction by retraining (Tramèr et al., section 6), membership by the
    distance to the boundary (Choquette-Choo et al. 2021, arXiv:2007.14321) or by whether the answer is right.
    """

    def deploy(self, system: System, task: Task) -> System:
        """Return system that tells classes."""
        return LabelsOnly(system)

"""Deceptive confidences. Source: Lee et al. 2019, IEEE SPW, arXiv:1806.00054, equations 3 and 4."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.confidence_masking import Masked

LEAST = 1e-300  # of a probability under the logarithm, before anything is told


class ReverseSigmoid(Masked):
    """Tells each probability y less beta (sigmoid(gamma logit(y)) - 1/2), scaled so that they add up to 1."""

    keeps_label = False

    def __init__(self, inner: System, beta: float, gamma: float) -> None:
        super().__init__(inner)
        self.beta, self.gamma = beta, gamma

    def told(self, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return the perturbed shares (n, classes)."""
        largest = torch.nn.functional.one_hot(shares.argmax(1), shares.shape[1]).bool()
        # 1 - y of the largest, as a sum: a subtraction would leave nothing of it where the answer is sure.
        others = torch.where(largest, 0, shares).sum(1, keepdim=True)
        rest = torch.where(largest, others, 1 - shares)
        logit = shares.clamp_min(LEAST).log() - rest.clamp_min(LEAST).log()
        perturbed = (shares - self.beta * (torch.sigmoid(self.gamma * logit) - 0.5)).clamp_min(0)
        return perturbed / perturbed.sum(1, keepdim=True)


@defense("reverse-sigmoid")
@dataclass(frozen=True)
class ReverseSigmoidAnswers(Defense):
    """Tell less for probabilities above one half and more for those below, by a sigmoid of their own logit.

    Claims to mislead who learns from confidences, at almost no cost in accuracy: unlike probabilities may be
    told alike. With beta above 2 or gamma above 1 some may fall below 0, and are told as 0. Known to be undone by
    who knows of it and uses the class alone (the paper's own bound). The class changes where nothing is likely and
    something next to impossible: that is raised the most.
    """

    beta: float = 1.0
    gamma: float = 0.1

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the perturbation."""
        if self.beta < 0 or self.gamma < 0:
            raise FirstlineError(f"{self}: beta and gamma must be at least 0")
        return ReverseSigmoid(system, self.beta, self.gamma)

"""Energy of the logits. Source: Liu et al. 2020, arXiv:2010.03759, without its fine-tuning."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.detector import Detector, check_fpr


class Energy(Detector):
    """Scores inputs by minus the temperature-softened largest logit."""

    def __init__(self, inner: System, temperature: float) -> None:
        super().__init__(inner)
        self.temperature = temperature

    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        """Return the answer to x (n, *shape), and the energies (n,)."""
        answer = self._inside().respond(x, rng)
        return answer, -self.temperature * torch.logsumexp(answer.logits / self.temperature, 1)


@defense("energy-score")
@dataclass(frozen=True)
class EnergyScore(Defense):
    """Refuse inputs of high energy: the logarithm of the sum of exponentiated logits is low.

    Claims to refuse inputs from elsewhere, better than the largest softmax probability does, and nothing about
    attacks. fpr is the share of clean inputs that it may refuse. Known to miss what raises a wrong logit, as
    adversarial examples of high confidence do (Chen et al. 2020, arXiv:2003.09711, on detectors that read
    outputs), which is what attacks do here.
    """

    inputs = ("real", "tokens")

    fpr: float = 0.05
    temperature: float = 1.0

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the detector."""
        check_fpr(self, self.fpr)
        if self.temperature <= 0:
            raise FirstlineError(f"{self}: the temperature must be above 0")
        return Energy(system, self.temperature)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Choose the threshold."""
        assert isinstance(system, Energy)
        system.set_threshold(data.x, self.fpr, ctx.rng.torch("answers"))

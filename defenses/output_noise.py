"""Gaussian noise on the answers. Source: Chandrasekaran et al. 2020, arXiv:1811.02054 (randomised answers)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.confidence_masking import Masked


class NoisyOutput(Masked):
    """Tells probabilities with Gaussian noise; what falls below 0 is told as 0."""

    stochastic = True
    keeps_label = False

    def __init__(self, inner: System, sigma: float) -> None:
        super().__init__(inner)
        self.stochastic, self.sigma = True, sigma

    def told(self, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return shares (n, classes) with noise, at least 0."""
        noise = torch.randn(shares.shape, generator=rng, dtype=shares.dtype).to(shares.device)
        return (shares + self.sigma * noise).clamp_min(0)


@defense("output-noise")
@dataclass(frozen=True)
class OutputNoise(Defense):
    """Add Gaussian noise of standard deviation sigma to the probabilities that are told, anew for each query.

    Claims to blur what confidences give away. Answers near a boundary change their class. Known to fall to asking
    again: the mean of many answers has little noise left.
    """

    sigma: float = 0.1

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the noise."""
        if self.sigma <= 0:
            raise FirstlineError(f"{self}: sigma must be positive")
        return NoisyOutput(system, self.sigma)

"""Gaussian noise on every query. Source: Cohen et al. 2019, arXiv:1902.02918, section 3, without its certificate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System


class Noisy(System):
    """Adds Gaussian noise of standard deviation sigma (input units) to each query, and clips to the box."""

    stochastic = True

    def __init__(self, inner: System, sigma: float, low: Tensor, high: Tensor) -> None:
        super().__init__(inner)
        self.stochastic, self.sigma = True, sigma
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def _noisy(self, x: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device)
        return torch.clamp(x + self.sigma * noise, self.get_buffer("low"), self.get_buffer("high"))

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer a noisy copy of x (n, *shape)."""
        return self._inside().respond(self._noisy(x, rng), rng)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer a noisy copy of x (n, *shape), differentiably."""
        return self._inside().surrogate(self._noisy(x, rng), rng)


@defense("input-noise")
@dataclass(frozen=True)
class InputNoise(Defense):
    """Blur small perturbations with random noise at inference.

    Claims a little robustness to single queries; known to fall to attacks that average over the noise
    (Athalye et al. 2018, arXiv:1802.00420, section 5.3). sigma is in input units.
    """

    inputs = ("real",)

    sigma: float = 0.1

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the noise."""
        low, high = task.space.box(torch.zeros(1))
        return Noisy(system, self.sigma, low, high)

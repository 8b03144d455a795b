"""Bit-depth reduction of the inputs.

Source: Guo et al. 2018, arXiv:1711.00117; Xu, Evans & Qi 2018, arXiv:1704.01155, section III-A.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System


class Quantised(System):
    """Rounds each feature to one of so many levels between its lowest and highest value.

    There is no stand-in on purpose: the gradient through the rounding is 0 everywhere, as in the papers.
    """

    def __init__(self, inner: System, levels: int, low: Tensor, high: Tensor) -> None:
        super().__init__(inner)
        self.levels = levels
        self.register_buffer("low", low)
        self.register_buffer("step", (high - low) / (levels - 1))

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer the rounded x (n, *shape)."""
        return self._inside().respond(self.rounded(x), rng)

    def rounded(self, x: Tensor) -> Tensor:
        """Return x (n, *shape) at the nearest levels."""
        return to_levels(x, self.get_buffer("low"), self.get_buffer("step"))


def to_levels(x: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """Return x (n, *shape) rounded to low and so many steps; what has a step of 0 becomes low."""
    return low + torch.round((x - low) / step.clamp_min(1e-12)) * step


def check_bits(defense: Defense, bits: int) -> None:
    """Raise FirstlineError unless a feature can be rounded to so many bits."""
    if bits < 1:
        raise FirstlineError(f"{defense}: bits must be at least 1")


@defense("quantisation", tags={"broken"})
@dataclass(frozen=True)
class Quantisation(Defense):
    """Round the inputs to `bits` bits per feature, and give attackers no way through the rounding.

    Claims to wipe out small perturbations. Its gradients are 0, so an attack by gradients gets nowhere, while
    noise and queries still find errors. Broken by taking the rounding for the identity on the way back (BPDA;
    Athalye et al. 2018, arXiv:1802.00420, section 5.2).
    """

    inputs = ("real",)

    bits: int = 3

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the rounding."""
        check_bits(self, self.bits)
        low, high = task.space.box(torch.zeros(1))
        return Quantised(system, 2**self.bits, low, high)

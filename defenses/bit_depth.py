"""Bit-depth reduction, with a way back for attackers. Source: Xu, Evans & Qi 2018, arXiv:1704.01155, section III-A."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.quantisation import Quantised, check_bits
from firstline.defenses.transformation import straight_through


class Squeezed(Quantised):
    """Rounds each feature to one of so many levels; on the way back the rounding is the identity."""

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer the rounded x (n, *shape) with the gradient of x itself."""
        return self._inside().surrogate(straight_through(x, self.rounded(x)), rng)


@defense("bit-depth")
@dataclass(frozen=True)
class BitDepth(Defense):
    """Round the inputs to `bits` bits per feature.

    Claims to wipe out perturbations smaller than half a level. The paper takes 1 bit for MNIST and 4 or 5 for
    photographs; 3 costs `digits` nothing. `quantisation` is the same without the stand-in. Known to fall to
    attackers who take the rounding for the identity on the way back (BPDA; Athalye et al. 2018,
    arXiv:1802.00420, section 5.2), which is what attacks do here.
    """

    inputs = ("real",)

    bits: int = 3

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the rounding."""
        check_bits(self, self.bits)
        low, high = task.space.box(torch.zeros(1))
        return Squeezed(system, 2**self.bits, low, high)

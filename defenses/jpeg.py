"""JPEG compression of the inputs.

Source: Das et al. 2017, arXiv:1705.02900; Guo et al. 2018, arXiv:1711.00117.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.jpeg import Rounding, compress
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.transformation import Transformed, images_only, straight_through


def _rounded(x: Tensor) -> Tensor:
    """Return x rounded, with the gradient of x."""
    return straight_through(x, x.round())


@defense("jpeg", version=2)
@dataclass(frozen=True)
class JPEG(Defense):
    """Compress the inputs as a JPEG file of some quality, and decompress them.

    Claims that compression drops what the eye doesn't see and a perturbation is made of; quality 75 is that
    of Guo et al.'s code. Known to fall to attackers who take its roundings for the identity on the way back
    (BPDA; Athalye et al. 2018, arXiv:1802.00420, section 5.2; Shin & Song 2017, JPEG-resistant adversarial
    images), which is what attacks do here.
    """

    inputs = ("real",)

    quality: int = 75

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the compression."""
        images_only(self, task)
        if not 1 <= self.quality <= 100:
            raise FirstlineError(f"{self}: the quality of a JPEG file is 1 to 100")
        low, high = (float(end) for end in task.space.box(torch.zeros(1)))

        def compressed(x: Tensor, rounding: Rounding) -> Tensor:
            image = compress((x - low) / (high - low), self.quality, rounding).clamp(0, 1)
            return low + (high - low) * image

        return Transformed(system, lambda x: compressed(x, torch.round), lambda x: compressed(x, _rounded))

"""Total-variation minimisation of images.

Source: Guo et al. 2018, arXiv:1711.00117, without its random choice of pixels; Rudin, Osher & Fatemi 1992, by
the dual iteration of Chambolle 2004, An Algorithm for Total Variation Minimization and Applications.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.transformation import Transformed, images_only

STEP = 0.25  # Chambolle proves 1/8 and finds that 1/4 converges as well


def total_variation(x: Tensor) -> Tensor:
    """Return the sum of the lengths of the gradients of each image of x (n, c, h, w), channel by channel, (n,)."""
    lengths: Tensor = torch.linalg.vector_norm(_slopes(x), dim=0)
    return lengths.flatten(1).sum(1)


def denoise(x: Tensor, weight: float, iterations: int) -> Tensor:
    """Return the images near x (n, c, h, w) that are least in half the squared distance + weight x total variation."""
    dual = torch.zeros(2, *x.shape, dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        slopes = _slopes(_divergence(dual) - x / weight)
        dual = (dual + STEP * slopes) / (1 + STEP * torch.linalg.vector_norm(slopes, dim=0))
    return x - weight * _divergence(dual)


def _slopes(x: Tensor) -> Tensor:
    """Return the differences to the pixel below and to the right, (2, n, c, h, w), 0 at the far edge."""
    return torch.stack([pad(x.diff(dim=2), (0, 0, 0, 1)), pad(x.diff(dim=3), (0, 1))])


def _divergence(dual: Tensor) -> Tensor:
    """Return minus the adjoint of `_slopes`, for a dual field that is 0 at the far edge, as its iterates are."""
    down, right = dual.unbind()
    return down - pad(down, (0, 0, 1, 0))[..., :-1, :] + right - pad(right, (1, 0))[..., :-1]


@defense("total-variation", version=2)
@dataclass(frozen=True)
class TotalVariation(Defense):
    """Replace each image by the near one of least total variation.

    Claims to smooth perturbations away and leave edges; weight is what a unit of variation costs in units of
    half the squared distance, for inputs in their own units. Known to fall to attackers who take it for the
    identity on the way back (BPDA; Athalye et al. 2018, arXiv:1802.00420, section 5.2). Attacks here
    differentiate through its iterations, which breaks more.
    """

    inputs = ("real",)

    weight: float = 0.1
    iterations: int = 50

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the smoothing."""
        images_only(self, task)
        if self.weight <= 0 or self.iterations < 1:
            raise FirstlineError(f"{self}: weight must be above 0 and iterations at least 1")
        smooth = partial(denoise, weight=self.weight, iterations=self.iterations)
        return Transformed(system, smooth, smooth)

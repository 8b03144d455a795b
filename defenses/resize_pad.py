"""Random resizing and padding as the paper has it. Source: Xie et al. 2018, arXiv:1711.01991."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.random_resizing import shrunk
from firstline.defenses.transformation import images_only


class Padded(System):
    """Shrinks each image to a random whole number of pixels and pads it with zeros, more on a random side."""

    def __init__(self, inner: System, least: float) -> None:
        super().__init__(inner)
        self.stochastic, self.least = True, least

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer a resized and padded copy of x (n, channels, height, width)."""
        return self._inside().respond(self._resized(x, rng), rng)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer a resized and padded copy of x (n, channels, height, width), differentiably."""
        return self._inside().surrogate(self._resized(x, rng), rng)

    def _resized(self, x: Tensor, rng: torch.Generator) -> Tensor:
        chance = torch.rand(len(x), 3, generator=rng, dtype=x.dtype).to(x.device)
        side = torch.tensor([x.shape[3], x.shape[2]], dtype=x.dtype, device=x.device)
        smallest = (self.least * side).floor().clamp_min(1)
        size = smallest + (chance[:, :1] * (side - smallest + 1)).floor()
        spare = side - size
        before = (chance[:, 1:] * (spare + 1)).floor()
        place = torch.where(spare > 0, 1 - 2 * before / spare.clamp_min(1), 0.0)
        return shrunk(x, size / side, place, "zeros")


@defense("resize-pad")
@dataclass(frozen=True)
class ResizePad(Defense):
    """Shrink each image to a random number of pixels, and pad it with zeros to its size at random.

    Claims that no perturbation survives all the resizings; least is the smallest share of the side, rounded
    down; the paper has images of 299 pixels and a side of 331. Networks here take one size, so images shrink
    instead of growing. `random-resizing` is the same by fractions of a pixel, and may say that it is not
    random. Known to fall to attacks that average over the resizing (EOT; Athalye et al. 2018,
    arXiv:1802.00420, section 5.3), which is what attacks do here.
    """

    inputs = ("real",)

    least: float = 0.9

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the resizing."""
        images_only(self, task)
        if not 0 < self.least < 1:
            raise FirstlineError(f"{self}: least is a share of the side, above 0 and below 1")
        return Padded(system, self.least)

"""Random resizing and padding. Source: Xie et al. 2018, arXiv:1711.01991."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.transformation import images_only


class Resizing(System):
    """Shrinks each image to a random share of its canvas, at least `least`, and puts it at a random place."""

    def __init__(self, inner: System, least: float, declared: bool) -> None:
        super().__init__(inner)
        self.stochastic, self.least = inner.stochastic or declared, least

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer a resized copy of x (n, channels, height, width)."""
        return self._inside().respond(self._resized(x, rng), rng)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer a resized copy of x (n, channels, height, width), differentiably."""
        return self._inside().surrogate(self._resized(x, rng), rng)

    def _resized(self, x: Tensor, rng: torch.Generator) -> Tensor:
        chance = torch.rand(len(x), 3, generator=rng, dtype=x.dtype).to(x.device)
        share = self.least + (1 - self.least) * chance[:, 0]
        return shrunk(x, share[:, None].expand(-1, 2), chance[:, 1:] * 2 - 1, "border")


def shrunk(x: Tensor, share: Tensor, place: Tensor, padding: str) -> Tensor:
    """Return x (n, channels, height, width), each image shrunk to its share of the canvas and moved to its place.

    share (n, 2) is of the width and of the height; place (n, 2) goes from -1, the right and lower end, to 1.
    padding is grid_sample's. Bilinear.
    """
    # The grid says where each pixel of the canvas looks in the image: beyond its edge there is padding.
    affine = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    affine[:, 0, 0], affine[:, 1, 1] = (1 / share).unbind(1)
    affine[:, :, 2] = (1 / share - 1) * place
    grid = affine_grid(affine, list(x.shape), align_corners=False)
    return grid_sample(x, grid, padding_mode=padding, align_corners=False)


@defense("random-resizing", tags={"broken"})
@dataclass(frozen=True)
class RandomResizing(Defense):
    """Shrink each image by a random amount and pad it back to its size, at inference only.

    Claims that no perturbation survives the resizing that it was not made for; least is the smallest share of
    the canvas; the paper has images of 299 pixels and a canvas of 331. Networks here take one size, so images
    shrink instead of growing; the padding repeats the edge, in bilinear interpolation. Broken by attacks that
    average over the resizing (EOT; Athalye et al. 2018, arXiv:1802.00420, section 5.3), which is what attacks
    do here. With declared=False the system says that it is not random, and attackers do not average: a false
    claim for the gate to find.
    """

    inputs = ("real",)

    least: float = 0.9
    declared: bool = True

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the resizing."""
        images_only(self, task)
        if not 0 < self.least <= 1:
            raise FirstlineError(f"{self}: least is a share of the canvas, above 0 and at most 1")
        return Resizing(system, self.least, self.declared)

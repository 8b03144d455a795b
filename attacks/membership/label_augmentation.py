"""Membership from labels alone: members stay right when they are shifted. Source: Choquette-Choo et al. 2021, arXiv:2007.14321, section 4."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Membership, Shadows
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("label-augmentation")
@dataclass(frozen=True)
class LabelAugmentation(Membership):
    """Ask about each image shifted by up to `shift` pixels along rows and columns, and score it by the share of right answers.

    What moves out of the image is lost, and what moves in is the lower end of the range.
    """

    needs = ("labels",)
    goals = ("scores", "labels")
    inputs = ("real",)

    shift: int = 1

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return the share of right answers (n,); (2 shift + 1)^2 queries each. Raises FirstlineError where inputs are no images."""
        x, y = candidates.x, candidates.y
        if x.ndim != 4 or not 0 < self.shift < min(x.shape[2:]):
            raise FirstlineError(f"{self}: shifts images by 1 pixel or more, and by less than their sides")
        low, size = target.space.box(x)[0].expand_as(x), self.shift
        right = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for down in range(-size, size + 1):
            for across in range(-size, size + 1):
                moved = torch.roll(x, (down, across), (2, 3))
                gone = torch.zeros_like(x[0, 0], dtype=torch.bool)
                gone[: max(0, down)] = gone[len(gone) + min(0, down) :] = True
                gone[:, : max(0, across)] = gone[:, gone.shape[1] + min(0, across) :] = True
                right += (target.labels(torch.where(gone, low, moved)) == y).double()
        return right / (2 * size + 1) ** 2

"""Membership from labels alone: members stay right under more noise. Source: Choquette-Choo et al. 2021, arXiv:2007.14321, section 4."""

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


@attack("label-noise")
@dataclass(frozen=True)
class LabelNoise(Membership):
    """Ask about each candidate with noise on it, and score it by the share of answers that are its label.

    Where all features are 0 or 1, noise flips each with the chance that flips `strength` of them on average; elsewhere
    it is Gaussian, with a deviation of strength hundredths of the range. The paper tunes its noise on shadows; these
    are its middle. No defense that hides scores hides this.
    """

    needs = ("labels",)
    goals = ("scores", "labels")
    inputs = ("real",)

    draws: int = 100
    strength: float = 3.0

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return the share of right answers (n,), the clean one among them; draws + 1 queries each."""
        if self.draws < 1 or self.strength <= 0:
            raise FirstlineError(f"{self}: draws must be at least 1, and strength above 0")
        x, y, noise = candidates.x, candidates.y, rng.torch("noise")
        low, high = target.space.box(x)
        binary = target.space.grid is not None and bool(((x == low) | (x == high)).all())
        width = x[0].numel() if len(x) else 1
        right = (target.labels(x) == y).double()
        for _ in range(self.draws):
            if binary:
                flip = torch.rand(x.shape, generator=noise).to(x.device) < self.strength / width
                moved = torch.where(flip, low + high - x, x)
            else:
                step = torch.randn(x.shape, generator=noise).to(x) * (high - low) * self.strength / 100
                moved = target.space.round(torch.minimum(torch.maximum(x + step, low), high))
            right += (target.labels(moved) == y).double()
        return right / (self.draws + 1)

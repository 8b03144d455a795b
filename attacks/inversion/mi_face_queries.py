"""MI-Face without gradients. Source: Fredrikson, Jha & Ristenpart 2015, CCS, section 5 (black-box, by numeric gradients).

With probes above 0 the gradients are estimated as Ilyas et al. 2018, arXiv:1804.08598, do (NES), which asks less than
one query per pixel and sees less.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from firstline.attacks.inversion.descent import begin, descend, inside
from firstline.benchmark.core.contracts import Inversion
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("mi-face-queries")
@dataclass(frozen=True)
class MiFaceQueries(Inversion):
    """Do what `mi-face` does with gradients that are estimated from told probabilities.

    Each step asks about the point itself, and about the points in which one feature is sigma larger (the paper's numeric
    gradient); with `probes` above 0 instead about 2 x `probes` points around, sigma away. Known to fail where
    probabilities are rounded: neighbours are told the same numbers then, and the slope is zero.
    """

    needs = ("scores",)
    goals = ("classes",)
    inputs = ("real",)

    start: str = "zero"
    steps: int = 30
    rate: float = 10.0
    probes: int = 0
    sigma: float = 0.05
    patience: int = 100
    enough: float = 0.99

    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        """Return the best point of each class, (classes, *shape)."""
        draw, features = rng.torch("probes"), torch.Size(target.space.shape).numel()

        def costs(points: Tensor, rows: Tensor) -> Tensor:
            logits = target.scores(points).logits.double()
            return (
                (1 - torch.softmax(logits, 1).gather(1, rows[:, None])[:, 0]).to(points).nan_to_num(nan=1.0)
            )

        def slopes(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            here, slope = costs(points, rows), torch.zeros_like(points)
            if not self.probes:
                for place in range(len(points)):
                    ahead = points[place].expand(features, *points.shape[1:]).clone()
                    ahead.flatten(1).diagonal().add_(self.sigma)
                    risen = costs(ahead, rows[place].expand(features)) - here[place]
                    slope[place] = (risen / self.sigma).reshape(points.shape[1:])
                return here, slope
            for _ in range(self.probes):
                way = torch.randn(points.shape, generator=draw).to(points)
                ahead, behind = (costs(points + sign * self.sigma * way, rows) for sign in (1, -1))
                slope += (ahead - behind).reshape(-1, *[1] * (points.ndim - 1)) * way
            return here, slope / (2 * self.sigma * self.probes)

        each = ((2 * self.probes or features) + 1) * target.classes
        found, taken = descend(
            slopes,
            begin(self.start, target, aux),
            clip=partial(inside, target.space),
            steps=min(self.steps, target.afford(self.steps * each) // each),
            rate=self.rate,
            patience=self.patience,
            enough=self.enough,
        )
        target.tell("steps", taken)
        return found

"""Away from the boundary by labels alone. Source: Kahla, Chen, Just & Jia 2022, arXiv:2203.06569 (BREP-MI), algorithm 1.

They search the codes of a generative network; here it is the inputs themselves, from a start of one's own data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.inversion.descent import average, inside
from firstline.benchmark.core.contracts import Inversion
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

WIDEN = 1.3  # what the radius is multiplied by once all around it is of the class


@attack("boundary-repulsion")
@dataclass(frozen=True)
class BoundaryRepulsion(Inversion):
    """Move each class's point away from neighbours on a sphere that get another label; widen the sphere when none does.

    It begins with a row of one's own that the system puts in the class, or else the mean of these rows. A step asks about
    `probes` points at `radius` times the root of the number of features, and goes `stride` times that far.
    """

    needs = ("labels", "aux")
    goals = ("classes",)
    inputs = ("real",)

    steps: int = 100
    probes: int = 32
    radius: float = 0.05
    stride: float = 0.33

    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        """Return the point of each class, on the widest sphere that it got to, (classes, *shape)."""
        points, draw = self._begun(target, aux), rng.torch("probes")
        reach = torch.full((target.classes,), self.radius * points[0].numel() ** 0.5, device=points.device)
        classes = torch.arange(target.classes, device=points.device)
        best, widest = points.clone(), torch.zeros_like(reach)
        each, taken = self.probes * target.classes, 0
        for _ in range(self.steps):
            if target.afford(each) < each:
                break
            taken += 1
            push, outside = torch.zeros_like(points), torch.zeros(target.classes, device=points.device)
            for _ in range(self.probes):
                way = torch.randn(points.shape, generator=draw).to(points)
                way = way / column(way.flatten(1).norm(dim=1), way)
                other = target.labels(points + column(reach, way) * way) != classes
                push -= column(other.to(way), way) * way
                outside += other.to(outside)
            clear = outside == 0
            kept = clear & (reach > widest)
            best[kept], widest[kept] = points[kept], reach[kept]
            reach = torch.where(clear, reach * WIDEN, reach)
            length = push.flatten(1).norm(dim=1).clamp_min(1e-12)
            moved = points + column(self.stride * reach / length, push) * push
            points = torch.where(column(clear, points), points, inside(target.space, moved))
        target.tell("steps", taken)
        return torch.where(column(widest > 0, best), best, points)

    def _begun(self, target: Target, aux: Data | None) -> Tensor:
        mean = average(aux)
        assert aux is not None
        begun = mean.expand(target.classes, *target.space.shape).clone()
        own = aux.x[: target.afford(len(aux))]
        if len(own):
            for x, label in zip(own.flip(0), target.labels(own).flip(0).tolist(), strict=True):
                if label >= 0:
                    begun[label] = x
        return begun

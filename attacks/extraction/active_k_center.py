"""Active learning by k-center.

Sources: Pal et al. 2020, ActiveThief, AAAI 34(01), section 4; Sener & Savarese 2018, arXiv:1708.00489, algorithm 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.extraction.active_thief import ActiveThief
from firstline.benchmark.core.registry import attack


@attack("active-k-center")
@dataclass(frozen=True)
class ActiveKCenter(ActiveThief):
    """Ask about the rows that lie farthest from all that were asked, in the space of the copy's probabilities."""

    def chosen(self, copy: nn.Module, free: Tensor, asked: Tensor, count: int) -> Tensor:
        """Return first the greedy centers, one after another."""
        with torch.no_grad():
            points, known = (torch.softmax(copy(part), 1) for part in (free, asked))
        return greedy_centers(points, known, count)


def greedy_centers(points: Tensor, known: Tensor, count: int) -> Tensor:
    """Return an order of points (n, d): count greedy centers first, each the farthest from known (m, d) and those before.

    Equals go by their place.
    """
    nearest = (
        torch.cdist(points, known).min(1).values if len(known) else torch.full_like(points[:, 0], torch.inf)
    )
    picked: list[int] = []
    for _ in range(min(count, len(points))):
        place = int(nearest.argmax())
        picked.append(place)
        nearest = torch.minimum(nearest, (points - points[place]).norm(dim=1))
        nearest[picked] = -1.0
    rest = torch.ones(len(points), dtype=torch.bool, device=points.device)
    first = torch.tensor(picked, dtype=torch.int64, device=points.device)
    rest[first] = False
    return torch.cat([first, rest.nonzero().flatten()])

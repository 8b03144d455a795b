"""Active learning in rounds: what its strategies share. Source: Pal et al. 2020, ActiveThief, AAAI 34(01), section 4."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.extraction.copying import Answers, Thief, owned, shuffled
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@dataclass(frozen=True)
class ActiveThief(Thief):
    """Ask about one's own data in `rounds`: a tenth of the budget at random, then what a strategy chooses each time."""

    needs = ("labels", "aux")

    rounds: int = 5
    start: float = 0.1

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return the answers of all rounds; no row is asked twice."""
        pool = owned(aux)
        order = shuffled(len(pool), rng, "pool").to(pool.x.device)
        first = min(budget, max(1, round(self.start * budget)))
        asked, free = order[:first], order[first:]
        found = self.ask(target, pool.x[asked])
        each = max(1, -(-(budget - first) // max(1, self.rounds)))
        while (count := min(each, int(target.left()), len(free))) > 0:
            if len(found):
                copy = self.draft(target, found, rng.child(f"after {len(asked)}"))
                free = free[self.chosen(copy, pool.x[free], pool.x[asked], count)]
            asked, free = torch.cat([asked, free[:count]]), free[count:]
            found = found + self.ask(target, pool.x[asked[-count:]])
        return found

    @abstractmethod
    def chosen(self, copy: nn.Module, free: Tensor, asked: Tensor, count: int) -> Tensor:
        """Return an order of free (n, *shape), the count that should be asked next first."""

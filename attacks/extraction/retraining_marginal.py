"""Retraining on inputs whose features are drawn one by one.

Source: the statistics-based synthesis of Shokri et al. 2017, arXiv:1610.05820, section V-C, used here to steal.
"""

from dataclasses import dataclass

import torch

from firstline.attacks.extraction.copying import Answers, Thief, owned
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("retraining-marginal")
@dataclass(frozen=True)
class RetrainingMarginal(Thief):
    """Ask about inputs each feature of which is that of another row of one's own data.

    The thief knows how often each value occurs, and nothing of how they go together; its queries have no end.
    """

    needs = ("labels", "aux")

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return the answers to budget such inputs."""
        flat = owned(aux).x.flatten(1)
        rows = torch.randint(len(flat), (budget, flat.shape[1]), generator=rng.torch("marginal queries"))
        return self.ask(target, flat.gather(0, rows.to(flat.device)).reshape(budget, *target.space.shape))

"""Retraining on data of the same kind.

Sources: Tramèr et al. 2016, arXiv:1609.02943, section 6; and, as the random strategy of Knockoff nets, Orekondy,
Schiele & Fritz 2019, arXiv:1812.02766.
"""

from dataclasses import dataclass

from firstline.attacks.extraction.copying import Answers, Thief, owned, shuffled
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("retraining")
@dataclass(frozen=True)
class Retraining(Thief):
    """Ask about data of one's own, drawn without replacement, and fit a network to the answers.

    It can ask no more than it has data. This is also the random strategy of Knockoff nets, with the task's own data as
    the pool.
    """

    needs = ("labels", "aux")

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return the answers to rows of aux."""
        pool = owned(aux)
        return self.ask(target, pool.x[shuffled(len(pool), rng, "pool")[:budget]])

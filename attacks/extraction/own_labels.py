"""Learning instead of stealing: the control of every extraction table.

Source: ours; Jagielski et al. 2020, arXiv:1909.01838, tell theft of accuracy from theft of fidelity.
"""

from dataclasses import dataclass

from torch.nn.functional import one_hot

from firstline.attacks.extraction.copying import Answers, Thief, owned, shuffled
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("own-labels", tags=("control",))
@dataclass(frozen=True)
class OwnLabels(Thief):
    """Fit the same network to the same data as `retraining`, with their true labels, and ask nothing.

    What `retraining` has above this was stolen; the rest was learned, and no defense of the system can keep it.
    """

    needs = ("labels", "aux")

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return the rows of aux that `retraining` would ask about, with their labels; no query."""
        pool = owned(aux)
        mine = pool.rows(shuffled(len(pool), rng, "pool")[:budget].to(pool.x.device))
        return Answers(mine.x, one_hot(mine.y, target.classes).to(mine.x))

"""Leave out the training rows that a model of the rest fits worst.

Source: Koh, Steinhardt & Liang 2022, arXiv:1811.00741 (the "loss" defense); the losses are cross-fitted here,
so that no row is judged by a network that memorised it.
"""

from dataclasses import dataclass

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.losses import cross_entropies
from firstline.benchmark.core.registry import defense
from firstline.defenses.judges import held_out_logits


@defense("loss-sanitising")
@dataclass(frozen=True)
class LossSanitising(Defense):
    """Train on `folds` - 1 parts, judge the rows of the last, and drop the share of rows with the highest loss.

    Claims to take out mislabelled rows; known to drop rare but right rows too, and to miss poison that fits
    well (clean-label attacks). The share is the defender's guess, not the attacker's budget.
    """

    share: float = 0.1
    folds: int = 3

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return data without its worst-fitting rows."""
        losses = cross_entropies(held_out_logits(data, self.folds, ctx), data.y)
        ctx.suspect(data.ids, losses)
        keep = losses.argsort(stable=True)[: len(data) - round(self.share * len(data))]
        return data.rows(keep.sort().values)

"""Leave out the training rows that a model of the rest fits worst.

Source: Koh, Steinhardt & Liang 2022, arXiv:1811.00741 (the "loss" defense); the losses are cross-fitted here,
so that no row is judged by a network that memorised it.
"""

from dataclasses import dataclass

import torch

from firstline.benchmark.core.contracts import Context, Defense, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.losses import cross_entropies
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import train


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
        fold = torch.randperm(len(data), generator=ctx.rng.torch("folds")) % self.folds
        losses = torch.zeros(len(data))
        recipe = ctx.task.default.recipe
        for part in range(self.folds):
            rng = ctx.rng.child(str(part))
            judge = initialise(ctx.task.default.build, rng).to(ctx.device)
            judge = train(judge, data.rows(fold != part).to(ctx.device), recipe, rng)
            held = data.rows(fold == part).to(ctx.device)
            with torch.no_grad():
                losses[fold == part] = cross_entropies(judge(held.x), held.y).cpu()
        keep = losses.argsort(stable=True)[: len(data) - round(self.share * len(data))]
        return data.rows(keep.sort().values)

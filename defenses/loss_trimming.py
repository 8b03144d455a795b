"""Iteratively trimmed loss minimisation. Source: Shen & Sanghavi 2019, arXiv:1810.11874, algorithm 1 (ITLM)."""

from dataclasses import dataclass

import torch

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.losses import cross_entropies
from firstline.benchmark.core.registry import defense
from firstline.defenses.judges import judge, logits_of
from firstline.defenses.sanitising import check_share


@defense("loss-trimming")
@dataclass(frozen=True)
class LossTrimming(Defense):
    """Train, keep the rows that fit best, train on those, and so on; what fits worst in the last round is left out.

    Claims to recover a model from rows with wrong labels: once they are left out, nothing pulls the network
    towards them. share is left out of all rows, and is the defender's guess. Unlike `loss-sanitising`, no row is
    held out: a network that memorises every row in the first round tells nothing. Known to fail on backdoors that
    are learned faster than anything else: their loss is low (Li et al. 2021, arXiv:2110.11571), and
    then clean rows go.
    """

    share: float = 0.1
    rounds: int = 3

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return data without the rows of highest loss in the last round."""
        check_share(self, self.share)
        if self.rounds < 1:
            raise FirstlineError(f"{self}: rounds must be at least 1")
        keep = torch.arange(len(data))
        for number in range(self.rounds):
            network = judge(data.rows(keep), ctx, ctx.rng.child(str(number)))
            losses = cross_entropies(logits_of(network, data, ctx), data.y)
            keep = losses.argsort(stable=True)[: len(data) - round(self.share * len(data))].sort().values
        ctx.suspect(data.ids, losses)
        return data.rows(keep)

"""Sparse updates. Source: Lin et al. 2018, arXiv:1712.01887 (deep gradient compression); Zhu et al. 2019, arXiv:1906.08935, section 5.2."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from firstline.benchmark.core.contracts import Context, Defense, Gradients
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense


@defense("update-pruning")
@dataclass(frozen=True)
class UpdatePruning(Defense):
    """Send the largest gradients alone, a share `kept` of all of them; the others are zero.

    Claims to hide details, and saves traffic; Zhu et al. find that a fifth of the gradients may go before leakage
    suffers. Known to leave labels, and what large gradients tell.
    """

    kept: float = 0.1

    def transmit(self, updates: Sequence[Gradients], ctx: Context) -> Gradients:
        """Return the first update with its small gradients at 0."""
        if not 0 < self.kept <= 1:
            raise FirstlineError(f"{self}: kept is above 0 and at most 1")
        own = updates[0]
        size = torch.cat([g.flatten() for g in own]).abs()
        count = max(1, round(self.kept * len(size)))
        least = size.topk(count).values[-1]
        return tuple(torch.where(g.abs() >= least, g, 0.0) for g in own)

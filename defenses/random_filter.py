"""A filter that knows how many rows are poisoned, and not which. Source: a control."""

from dataclasses import dataclass

import torch

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense


@defense("random-filter", tags={"control"})
@dataclass(frozen=True)
class RandomFilter(Defense):
    """Leave out as many rows as are poisoned, drawn from all. Shown, never ranked.

    What a filter gains only by leaving rows out, this one gains as well.
    """

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return the rows that the draw left."""
        order = torch.randperm(len(data), generator=ctx.rng.torch("rows"))
        return data.rows(order[len(ctx.poisoned) :].sort().values)

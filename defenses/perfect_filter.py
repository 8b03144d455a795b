"""A filter that knows which rows are poisoned: what no filter can do better. Source: a control."""

from dataclasses import dataclass

import torch

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense


@defense("perfect-filter", tags={"control"})
@dataclass(frozen=True)
class PerfectFilter(Defense):
    """Leave out exactly the poisoned rows, which it is told. Shown, never ranked.

    What is lost in spite of it is the price of having fewer rows; a filter that looks better was lucky.
    """

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return the rows that nobody poisoned."""
        return data.rows(~torch.isin(data.ids, ctx.poisoned))

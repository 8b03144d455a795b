"""A limit on how much one client may ask. Source: common practice; Tramèr et al. 2016, arXiv:1609.02943, name it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System


class Limited(System):
    """Answers as before, and flags every query of a client after the first `limit`."""

    def __init__(self, inner: System, limit: int) -> None:
        super().__init__(inner)
        self.limit, self._count = limit, 0

    def observe(self, queries: Tensor) -> Tensor:
        """Return which of the queries (n, *shape), in their order, are beyond the limit, (n,) bool."""
        numbers = self._count + torch.arange(1, len(queries) + 1, device=queries.device)
        self._count += len(queries)
        return self._inside().observe(queries) | (numbers > self.limit)


@defense("rate-limit")
@dataclass(frozen=True)
class RateLimit(Defense):
    """Answer no more than `limit` queries of one client.

    Claims that a client learns no more than that many answers tell. Known to stop nobody who has several accounts: with
    k of them a thief asks k times as much, and honest clients who ask a lot are the first to be hit.
    """

    limit: int = 500

    def deploy(self, system: System, task: Task) -> System:
        """Return system with a client that has asked nothing yet."""
        if self.limit < 0:
            raise FirstlineError(f"{self}: limit must not be negative")
        return Limited(system, self.limit)

"""A monitor that knows queries again. Source: Li et al. 2022, Blacklight, arXiv:2006.14042."""

from collections import deque
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.transformation import images_only

LEVELS = 5  # of a feature's range: the paper rounds pixels of 0 to 255 to multiples of 50
BATCH = 64  # queries that are hashed at once


class Monitored(System):
    """Answers as before, and flags queries that share much with one of the last `memory` ones.

    What it has seen is no part of the stored system: a rebuilt one begins anew.
    """

    def __init__(self, inner: System, settings: "QueryMonitor", low: Tensor, high: Tensor) -> None:
        super().__init__(inner)
        self.settings = settings
        self.register_buffer("low", low)
        self.register_buffer("step", (high - low) / LEVELS)
        self.register_buffer("secret", torch.ones(settings.window, dtype=torch.int64))
        self._seen: dict[
            int, frozenset[int]
        ] = {}  # fingerprints by the numbers of their queries, the oldest first
        self._count = 0  # of all queries so far
        self._places: dict[int, deque[int]] = {}  # hash to the numbers of the queries that have it

    def observe(self, queries: Tensor) -> Tensor:
        """Return which of the queries (n, *shape), in their order, look like an earlier one, (n,) bool."""
        known = [self._knows(found) for part in queries.split(BATCH) for found in self.fingerprints(part)]
        return self._inside().observe(queries) | torch.tensor(known, dtype=torch.bool, device=queries.device)

    def fingerprints(self, queries: Tensor) -> list[list[int]]:
        """Return the largest distinct hashes of each query's windows of rounded features, at most `hashes` each.

        The hash is a sum, modulo 2^64, of the features times secret numbers: without them nobody can aim at
        the windows that count.
        """
        low, step = self.get_buffer("low"), self.get_buffer("step")
        levels = torch.round((queries - low) / step.clamp_min(1e-12)).long().flatten(1) + 1
        values = (levels.unfold(1, self.settings.window, 1) * self.get_buffer("secret")).sum(2)
        return [sorted(set(row), reverse=True)[: self.settings.hashes] for row in values.tolist()]

    def _knows(self, fingerprint: list[int]) -> bool:
        """Whether an earlier query shares more than `share` of the hashes; remember this one."""
        needed = int(self.settings.share * len(fingerprint))
        # Who shares more than `needed` of them shares one of any len - needed: of the rarest, as they are few.
        places = sorted((self._places.get(value, ()) for value in fingerprint), key=len)
        near = set(chain.from_iterable(places[: len(fingerprint) - needed]))
        known = any(
            len(self._seen[number].intersection(fingerprint)) > needed
            for number in sorted(near, reverse=True)
        )
        self._remember(fingerprint)
        return known

    def _remember(self, fingerprint: list[int]) -> None:
        for value in fingerprint:
            self._places.setdefault(value, deque()).append(self._count)
        self._seen[self._count] = frozenset(fingerprint)
        self._count += 1
        if len(self._seen) > self.settings.memory:
            for value in self._seen.pop(self._count - 1 - self.settings.memory):
                self._places[value].popleft()
                if not self._places[value]:
                    del self._places[value]


@defense("query-monitor")
@dataclass(frozen=True)
class QueryMonitor(Defense):
    """Flag queries that look like an earlier one, as those of an attack by queries do.

    Claims to flag such attacks after a handful of queries, whoever sends them, and almost no others. window, in
    features, and hashes are the paper's, share its 25 of 50; memory is how many queries it looks back. Images with
    much empty background, as MNIST's, need a wider window: 50. Known to fall to attacks that adapt the length of
    their steps to what is flagged (Feng et al. 2023, arXiv:2303.06280), and to transfer, which asks once.
    """

    inputs = ("real",)

    window: int = 20
    hashes: int = 50
    share: float = 0.5
    memory: int = 10000

    def deploy(self, system: System, task: Task) -> System:
        """Return system with a monitor that has seen nothing."""
        images_only(self, task)
        features = torch.Size(task.space.shape).numel()
        if not 1 <= self.window <= features:
            raise FirstlineError(
                f"{self}: a window is 1 to {features} features, which the inputs of {task.name} have"
            )
        if self.hashes < 1 or self.memory < 1 or not 0 <= self.share < 1:
            raise FirstlineError(
                f"{self}: hashes and memory must be at least 1, share at least 0 and below 1"
            )
        low, high = task.space.box(torch.zeros(1))
        return Monitored(system, self, low, high)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Draw the secret."""
        assert isinstance(system, Monitored)
        secret = system.get_buffer("secret")
        drawn = torch.randint(-(2**63), 2**63 - 1, secret.shape, generator=ctx.rng.torch("secret"))
        secret.copy_(drawn)

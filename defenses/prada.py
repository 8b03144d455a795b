"""A monitor of how far apart queries are. Source: Juuti, Szyller, Marchal & Asokan 2019, PRADA, arXiv:1805.02628, algorithm 3."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import shapiro
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System

MOST = 5000  # distances that the Shapiro-Wilk test's p-value and weights are right for, the latest


class Prada(System):
    """Answers as before, and flags queries while their distances to earlier ones are not distributed normally.

    What it has seen is no part of the stored system: a rebuilt one begins anew.
    """

    def __init__(self, inner: System, delta: float, least: int) -> None:
        super().__init__(inner)
        self.delta, self.least = delta, least
        self._kept: dict[int, list[Tensor]] = {}  # by answer, the queries that are far from each other
        self._near: dict[int, list[float]] = {}  # by answer, each query's distance to the nearest of these
        self._far: dict[int, float] = {}  # by answer, from which distance on a query is kept
        self._distances: list[float] = []

    def observe(self, queries: Tensor) -> Tensor:
        """Return which of the queries (n, *shape), in their order, come while the test fails, (n,) bool."""
        with torch.no_grad():
            answers = self._inside().respond(queries, torch.Generator().manual_seed(0)).labels.tolist()
        flat = queries.detach().flatten(1).double().cpu()
        flagged = [self._suspects(x, answer) for x, answer in zip(flat, answers, strict=True)]
        return self._inside().observe(queries) | torch.tensor(
            flagged, dtype=torch.bool, device=queries.device
        )

    def statistic(self) -> float:
        """Return Shapiro and Wilk's W of the distances, those beyond three deviations left out; 1 while they are few."""
        found = np.asarray(self._distances[-MOST:])
        if len(found) <= self.least:
            return 1.0
        found = found[np.abs(found - found.mean()) <= 3 * found.std()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # all distances may be the same: W is 1 then, and it says so
            return float(shapiro(found).statistic)

    def _suspects(self, x: Tensor, answer: int) -> bool:
        kept = self._kept.setdefault(answer, [])
        if not kept:
            kept.append(x)
            return self.statistic() < self.delta
        distance = float((torch.stack(kept) - x).norm(dim=1).min())
        near = self._near.setdefault(answer, [])
        near.append(distance)
        self._distances.append(distance)
        if distance > self._far.get(answer, 0.0):
            kept.append(x)
            self._far[answer] = max(self._far.get(answer, 0.0), float(np.mean(near) - np.std(near)))
        return self.statistic() < self.delta


@defense("prada")
@dataclass(frozen=True)
class PradaMonitor(Defense):
    """Flag queries while the distances between those of one answer are not normal, by Shapiro and Wilk's W below delta.

    Claims to flag thieves that make queries from queries, as Jacobian augmentation does, after some hundreds; the
    paper has delta 0.9 or more, so that honest clients are never flagged, and looks from `least` distances on. Known
    to miss queries whose distances are normal: uniform noise, natural data of another kind, and synthetic queries
    mixed with enough honest ones; distances of high-dimensional noise are as normal as can be.
    """

    inputs = ("real",)

    delta: float = 0.9
    least: int = 100

    def deploy(self, system: System, task: Task) -> System:
        """Return system with a monitor that has seen nothing."""
        if not 0 < self.delta < 1 or self.least < 3:
            raise FirstlineError(f"{self}: delta lies between 0 and 1, and least is at least 3")
        return Prada(system, self.delta, self.least)

"""A monitor of what kind of inputs are asked about. Source: Rabanser, Günnemann & Lipton 2019, arXiv:1810.11953 (BBSDs).

Their test of dataset shift, on the system's own probabilities, watches a client's last queries here.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System

REFERENCE = 1000  # rows of the defender's own that queries are held against, at most
BATCH = 512

Floats = NDArray[np.float64]


class Drifting(System):
    """Answers as before, and flags queries while the answers to the last ones are not distributed as usual.

    What it has seen is no part of the stored system: a rebuilt one begins anew.
    """

    def __init__(self, inner: System, settings: "DriftMonitor", classes: int) -> None:
        super().__init__(inner)
        self.settings = settings
        self.register_buffer("usual", torch.zeros(REFERENCE, classes))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))  # of usual that are filled
        self._window: deque[Floats] = deque(maxlen=settings.window)
        self._count, self._alarmed = 0, False

    def shares(self, x: Tensor) -> Tensor:
        """Return the probabilities (n, classes) of the inner system, float64 on the CPU."""
        with torch.no_grad():
            noise = torch.Generator().manual_seed(0)
            parts = [self._inside().respond(part, noise).logits.double().cpu() for part in x.split(BATCH)]
        return torch.softmax(torch.cat(parts).nan_to_num(nan=0.0), 1)

    def observe(self, queries: Tensor) -> Tensor:
        """Return which of the queries (n, *shape), in their order, come while the test fails, (n,) bool.

        The test is made once in `every` queries, and holds until the next.
        """
        flagged = []
        for shares in self.shares(queries).numpy():
            self._window.append(shares)
            self._count += 1
            if len(self._window) == self.settings.window and self._count % self.settings.every == 0:
                self._alarmed = self.p_value() < self.settings.alpha
            flagged.append(self._alarmed)
        return self._inside().observe(queries) | torch.tensor(
            flagged, dtype=torch.bool, device=queries.device
        )

    def p_value(self) -> float:
        """Return the least of the classes' p-values by Kolmogorov and Smirnov, times the classes (Bonferroni)."""
        usual = self.get_buffer("usual")[: int(self.get_buffer("rows"))].double().cpu().numpy()
        if len(usual) == 0:
            return 1.0
        seen, classes = np.stack(self._window), usual.shape[1]
        return float(min(1.0, classes * min(_apart(usual[:, c], seen[:, c]) for c in range(classes))))


def _apart(usual: Floats, seen: Floats) -> float:
    return float(ks_2samp(usual, seen)[1])


@defense("drift-monitor")
@dataclass(frozen=True)
class DriftMonitor(Defense):
    """Flag queries while the answers to a client's last `window` ones are not distributed as those to clean data.

    Claims a false alarm in no more than alpha of the tests of honest clients whose data are like the defender's;
    there is a test every `every` queries. Known to miss thieves with data of the same kind, and to flag honest clients
    who ask about one class mostly.
    """

    window: int = 100
    every: int = 20
    alpha: float = 1e-4

    def deploy(self, system: System, task: Task) -> System:
        """Return system with a monitor that has seen nothing."""
        if self.window < 2 or self.every < 1 or not 0 < self.alpha < 1:
            raise FirstlineError(f"{self}: window is at least 2, every at least 1, and alpha between 0 and 1")
        return Drifting(system, self, task.classes)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Keep the answers to clean rows of the defender's own; training data, which systems are surer of, without any."""
        assert isinstance(system, Drifting)
        own = data if ctx.clean is None or len(ctx.clean) == 0 else ctx.clean
        rows = torch.randperm(len(own), generator=ctx.rng.torch("usual"))[:REFERENCE].to(own.x.device)
        usual = system.get_buffer("usual")
        usual[: len(rows)] = system.shares(own.x[rows]).to(usual)
        system.get_buffer("rows").fill_(len(rows))

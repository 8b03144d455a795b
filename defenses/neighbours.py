"""What detectors by neighbours share: a bank of features of clean inputs, and the distances to the nearest of it."""

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.system import System
from firstline.defenses.detector import Detector, features_of, halves
from firstline.defenses.features import last_linear


class Neighbours(Detector):
    """A detector that compares features with those of at most so many rows of the defender's data."""

    def __init__(self, inner: System, rows: int, k: int) -> None:
        super().__init__(inner)
        self.k = k
        self.register_buffer("bank", torch.zeros(rows, last_linear(inner).in_features))
        self.register_buffer("held", torch.tensor(k))  # how many rows of the bank there are

    def scaled(self, features: Tensor) -> Tensor:
        """Return features (n, width) as they are compared."""
        return features

    def fill(self, data: Data, fpr: float, ctx: Context) -> None:
        """Take the bank from one half of the data, and the threshold from the other.

        Raises FirstlineError where there are fewer than k rows.
        """
        rng = ctx.rng.torch("answers")
        known, fresh = halves(data, ctx)
        bank = self.get_buffer("bank")
        features = self.scaled(features_of(self._inside(), known.x[: len(bank)], rng))
        if len(features) < self.k:
            raise FirstlineError(
                f"{len(features)} rows of the data can go into the bank, too few for {self.k} neighbours; "
                "lower k, or raise bank"
            )
        bank[: len(features)] = features
        self.get_buffer("held").fill_(len(features))
        self.set_threshold(fresh.x, fpr, rng)

    def distances(self, features: Tensor) -> Tensor:
        """Return the distances of features (n, width) to their k nearest of the bank, the nearest first, (n, k)."""
        bank = self.get_buffer("bank")[: int(self.get_buffer("held"))]
        with torch.no_grad():
            nearest = torch.cdist(features, bank).topk(self.k, largest=False).indices
        # Once more for those k alone: the matrix product inside cdist loses the digits of small distances.
        apart = features[:, None] - bank[nearest]
        return apart.square().sum(2).clamp_min(TINY).sqrt().sort(1).values


def check_neighbours(defense: Defense, bank: int, k: int) -> None:
    """Raise FirstlineError unless a bank of so many rows has k neighbours."""
    if not 1 <= k <= bank:
        raise FirstlineError(f"{defense}: k must be at least 1, and at most the {bank} rows of the bank")

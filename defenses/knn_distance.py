"""Distance to the k-th nearest training features.

Source: Sun et al. 2022, arXiv:2204.06507; in the spirit of Papernot & McDaniel 2018, arXiv:1803.04765.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.detector import check_fpr
from firstline.defenses.features import with_features
from firstline.defenses.neighbours import Neighbours, check_neighbours


class FarNeighbour(Neighbours):
    """Scores inputs by the distance to the k-th nearest row of the bank, features having length 1."""

    def scaled(self, features: Tensor) -> Tensor:
        """Return features (n, width) of length 1."""
        return normalize(features, dim=1)

    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        """Return the answer to x (n, *shape), and the distances (n,), in [0, 2]."""
        answer, features = with_features(self._inside(), x, rng)
        return answer, self.distances(self.scaled(features))[:, -1]


@defense("knn-distance")
@dataclass(frozen=True)
class KNNDistance(Defense):
    """Refuse inputs whose features lie far from those of known inputs.

    Claims to refuse inputs from elsewhere, without a model of the features. fpr is the share of clean inputs that
    it may refuse, bank how many rows are kept at most, k which neighbour counts: the paper has one in a thousand
    of its bank, 50 of 50,000, which is the nearest in a bank of this size. Known to fall to attackers who steer
    the features towards those of another class (Sitawarin & Wagner 2019, arXiv:1903.08333, on deep k-nearest
    neighbours), which is what attacks do here.
    """

    inputs = ("real",)

    fpr: float = 0.05
    bank: int = 2000
    k: int = 1

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the detector."""
        check_fpr(self, self.fpr)
        check_neighbours(self, self.bank, self.k)
        return FarNeighbour(system, self.bank, self.k)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Fill the bank from one half of the data, and choose the threshold by the other."""
        assert isinstance(system, FarNeighbour)
        system.fill(data, self.fpr, ctx)

"""Local intrinsic dimensionality. Source: Ma et al. 2018, arXiv:1801.02613."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.detector import check_fpr
from firstline.defenses.features import with_features
from firstline.defenses.neighbours import Neighbours, check_neighbours


def intrinsic_dimension(distances: Tensor) -> Tensor:
    """Return the maximum-likelihood estimate (n,) from distances (n, k) to k neighbours, the nearest first.

    Source: Levina & Bickel 2004, as Ma et al. use it.
    """
    spread = (distances[:, -1:] / distances.clamp_min(TINY)).log().mean(1)
    return 1 / spread.clamp_min(1e-6)  # a million dimensions: all neighbours equally far


class Dimension(Neighbours):
    """Scores inputs by the intrinsic dimensionality of the features around them."""

    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        """Return the answer to x (n, *shape), and the dimensions (n,)."""
        answer, features = with_features(self._inside(), x, rng)
        return answer, intrinsic_dimension(self.distances(features))


@defense("lid")
@dataclass(frozen=True)
class LID(Defense):
    """Refuse inputs around which the features of known inputs spread in unusually many dimensions.

    Claims that adversarial examples lie off the data's manifold, where the dimension is high. fpr is the
    share of clean inputs that it may refuse; k = 20 is the paper's, whose bank is 100 rows drawn anew for
    each batch: a larger one that stays tells more here, and answers don't depend on the batch. It reads the
    features before the last layer; the paper's regression over all layers, which needs examples of the
    attack, is left out. Known to fall to attacks of high confidence without any adaptation (Athalye et al.
    2018, arXiv:1802.00420, section 5.2).
    """

    inputs = ("real",)

    fpr: float = 0.05
    bank: int = 1000
    k: int = 20

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the detector."""
        check_fpr(self, self.fpr)
        check_neighbours(self, self.bank, self.k)
        return Dimension(system, self.bank, self.k)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Fill the bank from one half of the data, and choose the threshold by the other."""
        assert isinstance(system, Dimension)
        system.fill(data, self.fpr, ctx)

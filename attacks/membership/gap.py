"""The gap attack: what is answered rightly was trained on. Source: Yeom et al. 2018, arXiv:1709.01604, adversary 2."""

from dataclasses import dataclass

from torch import Tensor

from firstline.benchmark.core.contracts import Membership, Shadows
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("gap")
@dataclass(frozen=True)
class Gap(Membership):
    """Call every rightly answered candidate a member: half the gap between train and test accuracy, from labels alone.

    A defense that hides scores can't hide this: no defense should look better than under it.
    """

    needs = ("labels",)
    goals = ("scores", "labels")

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return 1.0 where the answer is the label and 0.0 elsewhere, (n,); one query each."""
        return (target.labels(candidates.x) == candidates.y).double()

"""Membership by loss: what the system was trained on, it fits better. Source: Yeom et al. 2018, arXiv:1709.01604, adversary 1."""

from dataclasses import dataclass

from torch import Tensor

from firstline.benchmark.core.contracts import Membership
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.losses import cross_entropies
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("loss-threshold")
@dataclass(frozen=True)
class LossThreshold(Membership):
    """Score each candidate by minus its cross-entropy, in float64 so that tiny losses still differ."""

    needs = ("scores",)
    goals = ("scores",)

    def score(
        self, target: Target, candidates: Data, aux: Data | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return minus the loss (n,) of each candidate; one query each."""
        logits = target.scores(candidates.x).logits.double()
        return -cross_entropies(logits, candidates.y)

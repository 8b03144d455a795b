"""Membership by loss: what the system was trained on, it fits better. Source: Yeom et al. 2018, arXiv:1709.01604, adversary 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.membership.signals import told
from firstline.benchmark.core.contracts import Membership, Shadows
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.metrics.membership import losses


@attack("loss-threshold", version=2)
@dataclass(frozen=True)
class LossThreshold(Membership):
    """Score each candidate by minus its cross-entropy, in float64 so that tiny losses still differ."""

    needs = ("scores",)
    goals = ("scores",)

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return minus the loss (n,) of each candidate; one query each."""
        return torch.from_numpy(-losses(*told(target, candidates)))

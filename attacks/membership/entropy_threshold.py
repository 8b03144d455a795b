"""Membership by entropy: a system is surer of what it was trained on. Source: Salem et al. 2019, arXiv:1806.01246, adversary 3."""

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
from firstline.benchmark.metrics.membership import entropies


@attack("entropy-threshold")
@dataclass(frozen=True)
class EntropyThreshold(Membership):
    """Score each candidate by minus the entropy of the answer, whatever its label: a sure mistake looks like a member."""

    needs = ("scores",)
    goals = ("scores",)

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return minus the entropy (n,) of each answer; one query each."""
        return torch.from_numpy(-entropies(*told(target, candidates)))

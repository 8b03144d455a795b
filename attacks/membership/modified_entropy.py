"""Membership by an entropy that knows the label. Source: Song & Mittal 2021, arXiv:2003.10595, section 4.2."""

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
from firstline.benchmark.metrics.membership import modified_entropies


@attack("modified-entropy")
@dataclass(frozen=True)
class ModifiedEntropy(Membership):
    """Score each candidate by minus its modified entropy: least for a sure right answer, most for a sure wrong one."""

    needs = ("scores",)
    goals = ("scores",)

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return minus the modified entropy (n,) of each candidate; one query each."""
        return torch.from_numpy(-modified_entropies(*told(target, candidates)))

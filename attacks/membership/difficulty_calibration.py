"""Membership by the loss less what it is elsewhere. Source: Watson et al. 2022, arXiv:2111.08440, algorithm 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.membership.signals import enough, numbers, told
from firstline.benchmark.core.contracts import Membership, Shadows
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.metrics.membership import calibrated, losses


@attack("difficulty-calibration")
@dataclass(frozen=True)
class DifficultyCalibration(Membership):
    """Score each candidate by how much lower its loss is than for shadows that never saw it: hard rows fit badly everywhere."""

    needs = ("scores", "architecture")
    goals = ("scores",)

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return the mean loss (n,) of the shadows that were not fitted to each candidate, less that of the target; one query each."""
        own = enough(self, shadows, 1)
        logits, y = told(target, candidates)
        scores = calibrated(
            -losses(logits, y), refs=-losses(numbers(own.logits), y), member=own.member.numpy()
        )
        return torch.from_numpy(scores)

"""The likelihood-ratio attack. Source: Carlini et al. 2022, arXiv:2112.03570, algorithm 1, and section VI for offline."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.membership.signals import enough, numbers, told
from firstline.benchmark.core.contracts import Membership, Shadows
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.metrics.lira import lira_offline, lira_online
from firstline.benchmark.metrics.membership import scaled_logits


@attack("lira")
@dataclass(frozen=True)
class LiRA(Membership):
    """Compare a scaled logit with those of shadows that saw the candidate and of those that did not.

    Both are taken for normal, centred at their medians. Online it is the ratio of the two likelihoods; offline only
    the shadows that never saw the candidate are looked at, one-sided. variance is that of each candidate's shadows
    ('per-example'), for which the paper wants many, or one of all candidates ('fixed'). One query per candidate,
    where the paper augments images.
    """

    needs = ("scores", "architecture")
    goals = ("scores",)

    online: bool = True
    variance: str = "per-example"

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return the log likelihood ratio (n,), or offline by how many deviations a logit is too high. Raises FirstlineError for too few shadows."""
        if self.variance not in ("per-example", "fixed"):
            raise FirstlineError(f"{self}: variance is 'per-example' or 'fixed'")
        own = enough(self, shadows, 2)
        logits, y = told(target, candidates)
        compare = lira_online if self.online else lira_offline
        scores = compare(
            scaled_logits(logits, y),
            refs=scaled_logits(numbers(own.logits), y),
            member=own.member.numpy(),
            variance="fixed" if self.variance == "fixed" else "per-example",
        )
        return torch.from_numpy(scores)

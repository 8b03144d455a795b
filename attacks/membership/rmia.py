"""The robust membership inference attack. Source: Zarifzadeh et al. 2024, arXiv:2312.03262, equations 3 to 10."""

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
from firstline.benchmark.metrics.membership import losses
from firstline.benchmark.metrics.rmia import offline_log_ratios, online_log_ratios, rmia_scores


@attack("rmia")
@dataclass(frozen=True)
class RMIA(Membership):
    """Count the rows of the population whose probability rose less, against the shadows, than the candidate's.

    A ratio is that of the target's probability for the label to the mean of the shadows'; offline only shadows that
    never saw the candidate count, and `a` makes up for the others. gamma is by how much a ratio must be larger.
    Ties, which hide low false-positive rates with a small population, are told apart by the ratio itself.
    """

    needs = ("scores", "architecture", "aux")
    goals = ("scores",)

    online: bool = True
    a: float = 0.3
    gamma: float = 1.0

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return the share of the population that each candidate beats, (n,); a query per candidate and per row of the population."""
        if not 0 <= self.a <= 1 or not self.gamma > 0:
            raise FirstlineError(f"{self}: a lies between 0 and 1, and gamma is above 0")
        own = enough(self, shadows, 1)
        logits, y = told(target, candidates)
        others, labels = own.population, own.population.y.cpu().numpy()
        # The population's queries are shared out among the candidates that they are made for.
        rows = torch.arange(len(others)) % max(1, len(candidates))
        asked = numbers(target.scores(others.x.to(candidates.x.device), rows).logits)
        mine, theirs = -losses(logits, y), -losses(numbers(own.logits), y)
        known, refs = -losses(asked, labels), -losses(numbers(own.population_logits), labels)
        if self.online:
            ratios, population = online_log_ratios(mine, refs=theirs), online_log_ratios(known, refs=refs)
        else:
            unseen = torch.zeros(refs.shape, dtype=torch.bool).numpy()
            ratios = offline_log_ratios(mine, refs=theirs, member=own.member.numpy(), a=self.a)
            population = offline_log_ratios(known, refs=refs, member=unseen, a=self.a)
        return torch.from_numpy(rmia_scores(ratios, population=population, gamma=self.gamma))

"""Randomised smoothing. Source: Cohen, Rosenfeld & Kolter 2019, arXiv:1902.02918, section 3.

The deployed system is the smoothed classifier: the class that the network answers most often when Gaussian
noise is added to the input. PREDICT and CERTIFY are the functions of those names in the paper's section 3.2.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta, binom
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import REFUSED, Certificate, Response, System
from firstline.benchmark.core.training import train

SOFT = 8  # noisy draws of one call of the stand-in


def lower_bound(hits: NDArray[np.int64], draws: int, alpha: float) -> NDArray[np.float64]:
    """Return the exact lower bound (n,) of a probability that showed itself in hits (n,) of draws.

    One-sided, right with a probability of at least 1 - alpha. Source: Clopper & Pearson 1934, Biometrika 26.
    """
    return np.where(hits > 0, beta.ppf(alpha, np.maximum(hits, 1), draws - hits + 1), 0.0)


def noisy(x: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
    """Return x (n, *shape) with Gaussian noise of standard deviation sigma, drawn from rng on the CPU."""
    return x + sigma * torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device)


class Smoothed(System):
    """Answers with the class that the inner system answers most often to noisy copies of an input.

    Logits are logarithms of the shares of the votes, where the inner probabilities, averaged over the same
    draws, share one more vote: they break ties, and tell how near the others are when all votes are for one.
    """

    def __init__(self, inner: System, settings: "RandomisedSmoothing") -> None:
        super().__init__(inner)
        self.stochastic, self.settings = True, settings

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer x (n, *shape) by PREDICT: refused where the two leading classes may well be equally likely."""
        votes, soft = self._polled(x, self.settings.votes, rng)
        first, second = votes.topk(2, dim=1).values.cpu().numpy().astype(np.int64).T
        # The exact two-sided test of whether the leader's share of the votes for both is one half.
        chance = np.minimum(1.0, 2 * binom.sf(first - 1, first + second, 0.5))
        acceptance = torch.from_numpy(self.settings.alpha - chance).to(x)
        shares = (votes + soft).clamp_min(TINY) / (self.settings.votes + 1)
        return Response(torch.log(shares), acceptance)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer x (n, *shape) with the soft vote of a few draws (Salman et al. 2019, arXiv:1906.04584).

        It is accepted where as many votes as PREDICT has, cast in these shares, would pass the test's normal
        approximation.
        """
        answers = [self._inside().surrogate(noisy(x, self.settings.sigma, rng), rng) for _ in range(SOFT)]
        logits = torch.logsumexp(torch.stack([torch.log_softmax(a.logits, 1) for a in answers]), 0)
        logits = logits - math.log(SOFT)
        first, second = logits.topk(2, dim=1).values.exp().unbind(1)
        needed = -float(ndtri(self.settings.alpha / 2)) / math.sqrt(self.settings.votes)
        return Response(logits, (first - second) / (first + second).sqrt() - needed)

    def certify(self, x: Tensor, norm: str, rng: torch.Generator) -> Certificate | None:
        """Return what CERTIFY proves about x (n, *shape) in l2: nothing where it abstains."""
        if norm != "l2":
            return None
        sigma, n0, n, alpha = (getattr(self.settings, name) for name in ("sigma", "n0", "n", "alpha"))
        guess = self._polled(x, n0, rng)[0].argmax(1)
        hits = self._polled(x, n, rng)[0].gather(1, guess[:, None]).squeeze(1)
        least = lower_bound(hits.cpu().numpy().astype(np.int64), n, alpha)
        radii = torch.from_numpy(np.where(least > 0.5, sigma * ndtri(np.maximum(least, 0.5)), 0.0))
        radii = radii.to(x.device)
        return Certificate(torch.where(radii > 0, guess, REFUSED), radii)

    def _polled(self, x: Tensor, draws: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The votes for each class and the mean probabilities, both (n, classes), over so many noisy draws.

        A draw that the inner system refuses, or answers with no number, is a vote for nobody.
        """
        votes = soft = torch.zeros(())
        for _ in range(draws):
            answer = self._inside().respond(noisy(x, self.settings.sigma, rng), rng)
            classes = torch.arange(answer.logits.shape[1], device=x.device)
            votes = votes.to(x) + (answer.labels[:, None] == classes).to(x)
            soft = soft.to(x) + torch.softmax(torch.nan_to_num(answer.logits), 1) / draws
        return votes, soft


@defense("randomised-smoothing")
@dataclass(frozen=True)
class RandomisedSmoothing(Defense):
    """Train with Gaussian noise, answer by a vote over noisy draws, and prove how far the answer holds.

    Claims, with a probability of at least 1 - alpha for each input, that no l2 perturbation shorter than sigma
    times the normal quantile of the leader's probability changes the vote. Known to prove nothing in other
    norms that is worth having in many dimensions (Blum et al. 2020, arXiv:2002.03517; Yang et al. 2020,
    arXiv:2002.08118), to cost clean accuracy and many passes per answer, and to hold for the vote of
    infinitely many draws: the deployed one refuses where its votes don't tell.

    sigma is in input units, 0.12 to 1.0 in the paper. n0 draws guess the class and n draws bound its
    probability: 100 and 100,000 there, and 100 and 1,000 here, with which no radius is above 2.46 sigma (3.81
    there). votes draws decide an answer.
    """

    inputs = ("real",)

    sigma: float = 0.25
    votes: int = 100
    n0: int = 100
    n: int = 1000
    alpha: float = 0.001

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by the task's recipe on noisy batches."""

        def blurred(module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            return noisy(x, self.sigma, generator)

        return train(module, data, ctx.task.default.recipe, ctx.rng, perturb=blurred)

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the vote."""
        if self.sigma <= 0 or min(self.votes, self.n0, self.n) < 1 or not 0 < self.alpha < 1:
            raise FirstlineError(
                f"{self}: sigma must be positive, votes, n0 and n at least 1, and alpha between 0 and 1"
            )
        return Smoothed(system, self)

"""What detectors share: a score of each input, and the threshold above which it is refused.

Acceptance is a differentiable score, so that an attacker climbs it: a detector that only says yes or no would
be measured by attacks that don't know of it. Source: Carlini & Wagner 2017, arXiv:1705.07263; Bryniarski et
al. 2021, arXiv:2106.15023.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.system import Response, System
from firstline.defenses.features import with_features

BATCH = 256  # inputs that go through a system at once while it is calibrated


class Detector(System, ABC):
    """Refuses inputs whose score is above the threshold; what the score is, `judge` says.

    Acceptance is 0 at the threshold, and 1 at the score of the median clean input. An input is accepted where
    all detectors of a stack accept it.
    """

    def __init__(self, inner: System) -> None:
        super().__init__(inner)
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer("spread", torch.tensor(1.0))

    @abstractmethod
    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        """Return the answer of the inner system to x (n, *shape), and how suspect each input is, (n,)."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer x (n, *shape), and refuse what is suspect."""
        answer, score = self.judge(x, rng)
        acceptance = (self.get_buffer("threshold") - score) / self.get_buffer("spread")
        if answer.acceptance is not None:
            acceptance = torch.minimum(acceptance, answer.acceptance)
        return Response(answer.logits, acceptance)

    def set_threshold(self, x: Tensor, fpr: float, rng: torch.Generator) -> None:
        """Choose the lowest threshold that refuses at most a share fpr of the clean inputs x (n, *shape)."""
        scores = torch.cat([self.judge(part, rng)[1] for part in x.split(BATCH)]).sort().values
        n = len(scores)
        threshold = scores[n - 1 - int(fpr * n)]
        self.get_buffer("threshold").copy_(threshold)
        self.get_buffer("spread").copy_((threshold - scores[(n - 1) // 2]).clamp_min(TINY))


class Statistical(Detector):
    """A detector that compares the features of an input with statistics of those of clean ones."""

    @abstractmethod
    def learn(self, features: Tensor, y: Tensor) -> None:
        """Estimate the statistics from features (n, width) of classes y (n,)."""

    def fit(self, data: Data, fpr: float, ctx: Context) -> None:
        """Learn from one half of the data, and choose the threshold by the other."""
        rng = ctx.rng.torch("answers")
        known, fresh = halves(data, ctx)
        self.learn(features_of(self._inside(), known.x, rng), known.y)
        self.set_threshold(fresh.x, fpr, rng)


def check_fpr(defense: Defense, fpr: float) -> None:
    """Raise FirstlineError unless fpr is a share of clean inputs that a detector can do without."""
    if not 0 <= fpr < 0.5:
        raise FirstlineError(
            f"{defense}: fpr is the share of clean inputs that are refused, at least 0 and below 0.5"
        )


def halves(data: Data, ctx: Context) -> tuple[Data, Data]:
    """Return two random halves of data, the first the larger: one for statistics, one for the threshold.

    Rows that the statistics were made of look more usual than others, and would make the threshold too low.
    """
    order = torch.randperm(len(data), generator=ctx.rng.torch("halves")).to(data.x.device)
    cut = (len(data) + 1) // 2
    return data.rows(order[:cut]), data.rows(order[cut:])


def features_of(system: System, x: Tensor, rng: torch.Generator) -> Tensor:
    """Return the features (n, width) of inputs x (n, *shape), batch by batch."""
    return torch.cat([with_features(system, part, rng)[1] for part in x.split(BATCH)])


def class_means(features: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return the mean features (classes, width) of each class; of a class without rows, the mean of all."""
    member = torch.nn.functional.one_hot(y, classes).to(features)
    count = member.sum(0)[:, None]
    return torch.where(count > 0, member.T @ features / count.clamp_min(1), features.mean(0))

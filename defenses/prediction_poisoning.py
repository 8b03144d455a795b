"""Answers that lead a thief's training astray. Source: Orekondy, Schiele & Fritz 2020, ICLR, arXiv:1906.10908 (MAD).

MAD tells the probabilities, within a budget, whose gradient makes the largest angle with that of the true ones, in a
network that stands for the thief's. As in the authors' code, that is the gradient of the cross-entropy on the last
layer. For features f and answers p of that network it is (p - y) f^T, whatever is told for y: f drops out of the
angle, which is that between p - y and p - y', and no gradient has to be taken.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, one_hot

from firstline.benchmark.core.contracts import Context, Defense, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import System
from firstline.defenses.confidence_masking import Masked

EXHAUSTIVE = 10  # classes of which all sets are tried, as in the authors' code
DECIMALS = 9  # of a cosine


class MaximalDeviation(Masked):
    """Tells probabilities within the budget that turn the gradient of a network which knows nothing the most."""

    def __init__(self, inner: System, thief: nn.Module, budget: float, keep_label: bool) -> None:
        super().__init__(inner)
        self.thief, self.budget, self.keeps_label = thief, budget, keep_label

    def told(self, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return the best that was found for shares (n, classes)."""
        with torch.no_grad():
            believed = torch.softmax(self.thief(x).double(), 1)
            search = deviated_with_label if self.keeps_label else deviated
            return search(shares, believed, self.budget)


def deviated(shares: Tensor, believed: Tensor, budget: float) -> Tensor:
    """Return the probabilities (n, classes) on the ways from shares to each certain answer that deviate the most.

    budget is how far they may be from shares in l1. believed (n, classes) is what the thief's network answers. Rows
    where no way turns the gradient come back as they are.
    """
    single = torch.eye(shares.shape[1], dtype=shares.dtype, device=shares.device)
    told, cosine, _ = _best(shares, believed, single.expand(len(shares), -1, -1), budget)
    return torch.where((cosine < 1)[:, None], told, shares)


def deviated_with_label(shares: Tensor, believed: Tensor, budget: float) -> Tensor:
    """Return the same for the ways to equal shares of some classes, the largest of shares among them.

    Those are the corners of what keeps the class. Up to ten classes all sets of them are tried; of more, the authors
    add classes one by one, the best first.
    """
    classes = shares.shape[1]
    label = one_hot(shares.argmax(1), classes).to(shares)
    if classes <= EXHAUSTIVE:
        sets = torch.tensor(
            list(product([0.0, 1.0], repeat=classes))[1:], dtype=shares.dtype, device=shares.device
        )
        corners = (sets / sets.sum(1, keepdim=True)).expand(len(shares), -1, -1)
        told, cosine, _ = _best(shares, believed, corners, budget, label @ sets.T > 0)
        return torch.where((cosine < 1)[:, None], told, shares)
    found, cosine, _ = _best(shares, believed, label[:, None], budget)
    found, chosen = torch.where((cosine < 1)[:, None], found, shares), label
    single = torch.eye(classes, dtype=shares.dtype, device=shares.device)
    for _ in range(classes - 1):
        sets = torch.maximum(
            chosen[:, None], single
        )  # the row of a class that is in the set already adds nothing
        told, reached, which = _best(shares, believed, sets / sets.sum(2, keepdim=True), budget, chosen == 0)
        chosen = torch.maximum(chosen, single[which])
        found = torch.where((reached < cosine)[:, None], told, found)
        cosine = torch.minimum(cosine, reached)
    return found


def _best(
    shares: Tensor, believed: Tensor, corners: Tensor, budget: float, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best of the points on the ways to corners (n, k, classes) as far as the budget goes, its cosine, its number.

    allowed (n, k) says which ways count. Cosines are rounded, so that equals are equal and the first of them counts.
    """
    way = corners - shares[:, None]
    points = shares[:, None] + way * (budget / way.abs().sum(2, keepdim=True).clamp_min(TINY)).clamp_max(1)
    cosines = cosine_similarity(believed[:, None] - points, (believed - shares)[:, None], dim=2, eps=TINY)
    cosines = torch.round(cosines, decimals=DECIMALS)
    if allowed is not None:
        cosines = torch.where(allowed, cosines, torch.inf)
    which = cosines.argmin(1)
    rows = torch.arange(len(shares), device=shares.device)
    return points[rows, which], cosines[rows, which], which


@defense("prediction-poisoning")
@dataclass(frozen=True)
class PredictionPoisoning(Defense):
    """Tell the probabilities within `budget` (in l1, at most 2) that turn a thief's gradient the furthest.

    Claims that who trains on the answers goes astray. The thief's network is one of the task's kind that was never
    trained, as in the paper. With keep_label (MAD-argmax there) no answer changes its class; without it classes
    change where the budget allows, and accuracy falls. The best point is chosen among those that the budget
    reaches; the paper chooses a corner first. Known to do little with keep_label to thieves who use the class alone
    (the paper's own observation).
    """

    budget: float = 1.0
    keep_label: bool = True

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind an untrained network that stands for the thief's."""
        if self.budget < 0:
            raise FirstlineError(f"{self}: budget must be at least 0")
        thief = initialise(task.default.build, Streams(0))
        return MaximalDeviation(system, thief, self.budget, self.keep_label)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Draw the weights of the thief's network."""
        assert isinstance(system, MaximalDeviation)
        system.thief.load_state_dict(initialise(ctx.task.default.build, ctx.rng).state_dict())

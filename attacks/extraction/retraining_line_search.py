"""Retraining on inputs near the boundary. Source: Tramèr et al. 2016, arXiv:1609.02943, section 6 (line-search retraining)."""

from dataclasses import dataclass

import torch

from firstline.attacks.extraction.copying import Answers, Thief, uniform
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("retraining-line-search")
@dataclass(frozen=True)
class RetrainingLineSearch(Thief):
    """Spend half of the budget on `start` points and on bisecting between two that get different answers.

    Each line is cut in two `halvings` times, so that it ends in a pair of points close to the boundary; the other
    half of the budget goes to uniform points, or to data of one's own where the threat grants some.
    """

    halvings: int = 8
    start: float = 0.1

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return all answers: those along the lines too."""
        pool = uniform(target, budget, rng, "points") if aux is None or len(aux) == 0 else aux.x
        order = torch.randperm(len(pool), generator=rng.torch("order")).to(pool.device)
        pool = pool[order]
        ends = self.ask(target, pool[: max(2, round(self.start * budget))][:budget])
        lines = max(0, budget // 2 - len(ends)) // self.halvings
        found = ends + self._along(target, ends, lines, rng)
        return found + self.ask(target, pool[len(ends) :][: max(0, int(target.left()))])

    def _along(self, target: Target, ends: Answers, lines: int, rng: Streams) -> Answers:
        """The answers along so many lines between ends that are answered differently."""
        nothing = Answers(ends.x[:0], ends.shares[:0])
        labels = ends.shares.argmax(1).cpu()
        if lines == 0 or len(labels.unique()) < 2:
            return nothing
        draw = rng.torch("lines")
        left = torch.randint(len(labels), (4 * lines,), generator=draw)
        right = torch.randint(len(labels), (4 * lines,), generator=draw)
        apart = (labels[left] != labels[right]).nonzero().flatten()[:lines]
        a, b = (ends.x[side[apart].to(ends.x.device)] for side in (left, right))
        own, found = labels[left][apart].to(a.device), nothing
        for _ in range(self.halvings):
            middle = target.space.round((a + b) / 2)
            heard = self.ask(target, middle)
            found = found + heard
            if len(heard) < len(middle):  # something was refused: the sides are no longer known
                break
            same = heard.shares.argmax(1) == own
            a, b = (torch.where(column(same, a), x, y) for x, y in ((middle, a), (b, middle)))
        return found

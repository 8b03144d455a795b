"""Retraining where the copy is unsure. Source: Tramèr et al. 2016, arXiv:1609.02943, section 6 (adaptive retraining)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.extraction.copying import Answers, Thief, uniform
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("retraining-adaptive")
@dataclass(frozen=True)
class RetrainingAdaptive(Thief):
    """Ask in `rounds`: each time about the points, of `choice` times as many candidates, that the copy is least sure of.

    Candidates are uniform inputs; where the threat grants data, they are mixed from pairs of its rows instead, feature
    by feature.
    """

    rounds: int = 5
    choice: int = 10

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return the answers of all rounds."""
        each = max(1, budget // max(1, self.rounds))
        found = self.ask(target, candidates(target, aux, each, rng.child("round 0")))
        turn = 1
        while (left := min(each, int(target.left()))) > 0 and turn < 2 * self.rounds:
            stream = rng.child(f"round {turn}")
            pool = candidates(target, aux, self.choice * left, stream)
            if len(found):
                pool = pool[unsure(self.draft(target, found, stream), pool)]
            found = found + self.ask(target, pool[:left])
            turn += 1
        return found


def candidates(target: Target, aux: Data | None, count: int, rng: Streams) -> Tensor:
    """Return inputs (count, *shape): uniform, or mixed from two rows of aux each."""
    if aux is None or len(aux) == 0:
        return uniform(target, count, rng, "candidates")
    draw = rng.torch("candidates")
    one, other = (aux.x[torch.randint(len(aux), (count,), generator=draw).to(aux.x.device)] for _ in range(2))
    pick = torch.rand(one.shape, generator=draw).to(one.device) < 0.5
    return torch.where(pick, one, other)


@torch.no_grad()
def unsure(copy: nn.Module, x: Tensor) -> Tensor:
    """Return the order (n,) of x (n, *shape) from the smallest lead of the copy's first class over its second."""
    first, second = torch.softmax(copy(x), 1).topk(2, dim=1).values.unbind(1)
    return (first - second).argsort(stable=True)

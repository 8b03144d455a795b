"""Substitutes from a handful of seeds.

Sources: Papernot et al. 2017, arXiv:1602.02697, algorithm 1, with the step's sign from the authors' cleverhans.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.extraction.copying import Answers, Thief, owned, shuffled
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("jacobian-augmentation")
@dataclass(frozen=True)
class JacobianAugmentation(Thief):
    """Ask about `seeds` rows of one's own; then again and again about all points so far, each moved by `step`.

    A point moves by the sign of the slope of the copy's output for the class that the system gave it, so that the set
    doubles in each round; the paper has 150 seeds, six rounds and a step of 0.1. For `period` rounds points go down
    that slope, towards the boundary, for as many up it, and so on, as in the authors' code. Labels are all it asks
    for. As many points as the budget has left are asked in the last round.
    """

    soft: bool = False
    seeds: int = 150
    step: float = 0.1
    rounds: int = 6
    period: int = 3

    needs = ("labels", "aux")

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return the answers of all rounds."""
        pool = owned(aux)
        found = self.ask(target, pool.x[shuffled(len(pool), rng, "pool")[: min(self.seeds, budget)]])
        for turn in range(self.rounds):
            left = int(target.left())
            if left == 0 or len(found) == 0:
                break
            stream = rng.child(f"round {turn}")
            copy = self.draft(target, found, stream)
            down = turn // max(1, self.period) % 2 == 0
            ways = climbing(copy, found) * (-1 if down else 1)
            chosen = shuffled(len(found), stream, "kept")[:left].sort().values.to(ways.device)
            found = found + self.ask(target, target.space.round((found.x + self.step * ways)[chosen]))
        return found


def climbing(copy: nn.Module, answers: Answers) -> Tensor:
    """Return the signs (n, *shape) of the slopes of the copy's outputs for the classes that were told."""
    leaf = answers.x.clone().requires_grad_()
    with torch.enable_grad():
        own = copy(leaf).gather(1, answers.shares.argmax(1, keepdim=True))
        (slope,) = torch.autograd.grad(own.sum(), leaf)
    return slope.sign()

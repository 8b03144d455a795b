"""Knockoff nets with the adaptive strategy. Source: Orekondy, Schiele & Fritz 2019, arXiv:1812.02766."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.extraction.copying import Answers, Thief, owned
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("knockoff-adaptive")
@dataclass(frozen=True)
class KnockoffAdaptive(Thief):
    """Learn by a gradient bandit which classes of one's own data are worth asking about.

    Arms are the classes of the thief's data. In each of `turns` it draws a batch by a softmax policy over the arms,
    asks, and rewards each arm with the sum of the paper's three measures, each as its rank from 0 to 1: how sure the
    system is (margin), how unlike the average its answer is (diversity), and how far the copy is from it (loss). The
    copy is fitted once more, to all answers, at the end.
    """

    needs = ("labels", "aux")

    turns: int = 10
    speed: float = 1.0

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return the answers to the rows that the policy chose; none is asked twice."""
        pool = owned(aux)
        arms, arm = pool.y.cpu().unique(return_inverse=True)
        value, free = torch.zeros(len(arms), dtype=torch.float64), torch.ones(len(pool), dtype=torch.bool)
        found = Answers(pool.x[:0], torch.zeros(0, target.classes, device=pool.x.device))
        mean = torch.zeros(target.classes, dtype=torch.float64)
        each = max(1, -(-budget // max(1, self.turns)))
        draw = rng.torch("policy")
        while (count := min(each, int(target.left()), int(free.sum()))) > 0:
            policy = torch.softmax(value, 0)
            weight = torch.where(free, policy[arm].clamp_min(1e-12), 0.0)
            rows = torch.multinomial(weight, count, generator=draw)
            free[rows] = False
            heard = self.ask(target, pool.x[rows.to(pool.x.device)])
            if len(heard) == count:
                copy = self.draft(target, found, rng.child(f"turn {len(found)}")) if len(found) else None
                reward = rewards(heard, copy, mean)
                value = climbed(value, policy, arm[rows], reward, self.speed)
                mean = (mean * len(found) + heard.shares.double().cpu().sum(0)) / (len(found) + count)
            found = found + heard
        return found


@torch.no_grad()
def rewards(heard: Answers, copy: nn.Module | None, mean: Tensor) -> Tensor:
    """Return the rewards (n,) of answers: certainty, diversity and the copy's loss, each as ranks, as their mean."""
    shares = heard.shares.double().cpu()
    first, second = shares.topk(2, dim=1).values.unbind(1)
    kinds = [first - second, (shares - mean).clamp_min(0).sum(1)]
    if copy is not None:
        kinds.append(-(shares * torch.log_softmax(copy(heard.x).double().cpu(), 1)).sum(1))
    ranks = [
        kind.argsort(stable=True).argsort(stable=True).double() / max(1, len(kind) - 1) for kind in kinds
    ]
    return torch.stack(ranks).mean(0)


def climbed(value: Tensor, policy: Tensor, arm: Tensor, reward: Tensor, speed: float) -> Tensor:
    """Return the arms' preferences (k,) after a batch: the gradient bandit's step, with the batch's mean as baseline."""
    taken = torch.zeros(len(reward), len(value), dtype=value.dtype).scatter_(1, arm[:, None], 1.0)
    return value + speed * ((reward - reward.mean())[:, None] * (taken - policy)).sum(0)

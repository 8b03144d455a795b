"""A deep ensemble. Source: Lakshminarayanan, Pritzel & Blundell 2017, arXiv:1612.01474, section 2.4 and algorithm 1."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import train


class Members(nn.Module):
    """Networks that answer together, with the logarithm of their mean probabilities."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def each(self, x: Tensor) -> Tensor:
        """Return the logarithm of every network's probabilities for x (n, *shape), (members, n, classes)."""
        return torch.stack([torch.log_softmax(network(x), 1) for network in self.networks])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the mean probabilities, (n, classes)."""
        return together(self.each(x))


def together(each: Tensor) -> Tensor:
    """Return the logarithm of the mean of the probabilities whose logarithms are each (members, n, classes)."""
    return torch.logsumexp(each, 0) - math.log(len(each))


def members_of(task: Task, count: int, name: str) -> Members:
    """Return count untrained networks of the task's default kind, each with initial weights of its own."""
    if count < 1:
        raise FirstlineError(f"{name}: members must be at least 1, got {count}")
    return Members([task.default.build() for _ in range(count)])


@defense("ensemble")
@dataclass(frozen=True)
class Ensemble(Defense):
    """Train several networks apart, from other weights and in other orders, and average their probabilities.

    Claims better calibration and some accuracy; that an attack has to fool several networks at once is a hope
    of others. Adversarial examples are known to transfer between the members, so that an attack on the mean
    breaks them together (He et al. 2017, arXiv:1706.04701). The paper has 5 members, and adversarial training
    by one step as an option, which is left out. The first member is the network that `none` trains.
    """

    members: int = 3

    def build(self, task: Task) -> nn.Module:
        """Return the untrained members."""
        return members_of(task, self.members, self.name)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module with each member trained by the task's recipe."""
        assert isinstance(module, Members)
        for number, network in enumerate(module.networks):
            rng = ctx.rng if number == 0 else ctx.rng.child(f"member {number}")
            train(network, data, ctx.task.default.recipe, rng)
        return module.eval()

"""Adversarial regularisation. Source: Nasr, Shokri & Houmansadr 2018, arXiv:1807.05852, algorithm 1."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from firstline.benchmark.core.contracts import Context, Defense, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import Recipe, train
from firstline.defenses.early_stopping import shortened

RATE = 1e-3  # of the adversary


class Adversary(nn.Module):
    """Tells members from others by an answer and the true class, each through layers of its own, then together."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.answers = nn.Sequential(nn.Linear(classes, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.labels = nn.Sequential(nn.Linear(classes, 64), nn.ReLU())
        self.both = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return how likely the rows with these logits (n, classes) and classes y (n,) are members, as log-odds (n,)."""
        label = one_hot(y, logits.shape[1]).to(logits)
        both = torch.cat([self.answers(logits.softmax(1)), self.labels(label)], 1)
        found: Tensor = self.both(both).squeeze(1)
        return found


@defense("adversarial-regularisation")
@dataclass(frozen=True)
class AdversarialRegularisation(Defense):
    """Train against an adversary that learns, at the same time, to tell training rows from held-out ones.

    Claims that a network whose answers the best adversary can't tell apart has membership privacy. Known to hide
    less than was reported, from attacks other than the adversary's (Song & Mittal 2021, arXiv:2003.10595). alpha weighs the adversary's gain, the paper's lambda: the mean probability of membership that
    it gives to training rows, as in the authors' code, where the paper has its logarithm. The larger it is, the less
    stable the game. held_out is the share of the rows that serve as non-members and are never fitted, where the paper
    has other data. The adversary is smaller than the paper's and takes one step by Adam for each of the network's.
    The authors keep the epoch that is best on further rows; here it is the last of a share of the recipe's, chosen
    beforehand.
    """

    alpha: float = 1.0
    held_out: float = 0.2
    share: float = 1.0

    def recipe(self, task: Task) -> Recipe:
        """Return the task's recipe with a share of its epochs. Raises FirstlineError unless share is one."""
        return shortened(self, task, self.share)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by the task's recipe on what is not held out."""
        members, others = self.parts(data, ctx)
        adversary = initialise(lambda: Adversary(ctx.task.classes), ctx.rng.child("adversary")).to(ctx.device)
        optimiser = torch.optim.Adam(adversary.parameters(), lr=RATE)
        draws = ctx.rng.torch("others")

        def learn(network: nn.Module, x: Tensor, y: Tensor) -> None:
            """Let the adversary take a step on a batch of members and as many others."""
            rows = others.rows(torch.randint(len(others), (len(x),), generator=draws).to(x.device))
            with torch.no_grad():
                logits = network(torch.cat([x, rows.x]))
            member = torch.arange(2 * len(x), device=x.device) < len(x)
            found = adversary(logits, torch.cat([y, rows.y]))
            optimiser.zero_grad()
            binary_cross_entropy_with_logits(found, member.to(found)).backward()
            optimiser.step()

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            learn(network.eval(), x, y)  # so that it sees answers as deployed, and no running statistics move
            logits = network.train()(x)
            gain: Tensor = adversary(logits, y).sigmoid().mean()
            return cross_entropy(logits, y) + self.alpha * gain

        return train(module, members, self.recipe(ctx.task), ctx.rng, loss=loss)

    def parts(self, data: Data, ctx: Context) -> tuple[Data, Data]:
        """Return the rows that are fitted, in their order, and those that the adversary has as non-members."""
        if self.alpha < 0 or not 0 < self.held_out < 1:
            raise FirstlineError(f"{self}: alpha must be at least 0, held_out a share between 0 and 1")
        count = round(self.held_out * len(data))
        if not 0 < count < len(data):
            raise FirstlineError(
                f"{self}: {count} of {len(data)} rows would be held out; both parts need some"
            )
        order = torch.randperm(len(data), generator=ctx.rng.torch("held out")).to(data.x.device)
        return data.rows(order[count:].sort().values), data.rows(order[:count].sort().values)

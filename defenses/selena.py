"""SELENA: an ensemble that answers training rows as if it had not seen them, distilled into one network.

Source: Tang, Mahloujifar, Song, Shejwalkar, Nasr, Houmansadr & Mittal 2022, arXiv:2110.08324 (Split-AI and
self-distillation).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.contracts import Context, Defense, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import train

BATCH = 1000  # rows that a network is asked about at once


def blind_models(rows: int, models: int, blind: int, generator: torch.Generator) -> Tensor:
    """Return which models don't see which row, (rows, models) bool: for each row so many of them, chosen by chance."""
    order = torch.rand(rows, models, generator=generator).argsort(1)
    return torch.zeros(rows, models, dtype=torch.bool).scatter(1, order[:, :blind], True)


@defense("selena")
@dataclass(frozen=True)
class Selena(Defense):
    """Train networks on parts of the data, and a last one on what those say of a row that did not see it.

    Claims that a network which never learns from an answer to a row by one that saw the row treats training rows as
    any other. Known to leak: a row still moves the answers to its neighbours, from which the last network learns
    (Aerni, Zhang & Tramèr 2024, arXiv:2404.17399, find none of five such defenses as good as noise on the gradients).
    models and blind are the paper's K and L; all networks are trained by the task's recipe. It costs as many fits as
    there are models, each on the share 1 - blind / models of the rows, and one more.
    """

    models: int = 25
    blind: int = 10

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained on the mean probabilities of the models that did not see each row."""
        targets = self.targets(data, ctx)

        def distilled(network: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
            return cross_entropy(network(x), targets[rows])

        numbered = replace(
            data, y=torch.arange(len(data), device=data.y.device)
        )  # for a label, the row's number
        return train(module, numbered, self.recipe(ctx.task), ctx.rng, loss=distilled)

    def targets(self, data: Data, ctx: Context) -> Tensor:
        """Return for each row of data the mean probabilities (n, classes) of the models that did not see it.

        Raises FirstlineError unless some models see a row and some don't.
        """
        if not 0 < self.blind < self.models:
            raise FirstlineError(f"{self}: blind must be at least 1 and below the number of models")
        blind = blind_models(len(data), self.models, self.blind, ctx.rng.torch("blind")).to(data.x.device)
        total = torch.zeros(len(data), ctx.task.classes, device=data.x.device)
        for number in range(self.models):
            unseen = blind[:, number]
            network = self.part(data.rows(~unseen), ctx, number)
            with torch.no_grad():
                answers = [network(rows).softmax(1) for rows in data.x[unseen].split(BATCH)]
                total[unseen] += torch.cat(answers)
        return total / self.blind

    def part(self, seen: Data, ctx: Context, number: int) -> nn.Module:
        """Return the network of this number, trained on the rows that it sees."""
        rng = ctx.rng.child(f"part {number}")
        network = initialise(lambda: self.build(ctx.task), rng).to(ctx.device)
        return train(network, seen, self.recipe(ctx.task), rng)

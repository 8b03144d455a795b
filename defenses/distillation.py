"""Defensive distillation. Source: Papernot et al. 2016, arXiv:1511.04508, section III-B (temperature: V-B)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import train


def soft_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """Return the mean cross-entropy between the softmax of logits and shares, both (n, classes)."""
    return -(shares * torch.log_softmax(logits, 1)).sum(1).mean()


@defense("defensive-distillation", tags={"broken"})
@dataclass(frozen=True)
class DefensiveDistillation(Defense):
    """Train a network on the softened answers of its twin, and deploy it without the softening.

    Claims that a smoother network has gradients too small to attack. The softmax, learned at a high
    temperature and used at 1, saturates: the gradient of the cross-entropy vanishes and the network is as
    fragile as before. Broken by a loss on the logits (Carlini & Wagner 2017, arXiv:1608.04644, section VIII).
    """

    temperature: float = 100.0

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module, fitted to the answers of a teacher of the same kind, both by the task's recipe."""
        recipe = ctx.task.default.recipe

        def hard(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(network(x) / self.temperature, y)

        rng = ctx.rng.child("teacher")
        teacher = initialise(ctx.task.default.build, rng).to(ctx.device)
        train(teacher, data, recipe, rng, loss=hard).requires_grad_(False)

        def soft(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            shares = torch.softmax(teacher(x) / self.temperature, 1)
            return soft_cross_entropy(network(x) / self.temperature, shares)

        return train(module, data, recipe, ctx.rng, loss=soft)

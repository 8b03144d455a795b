"""TRADES. Source: Zhang et al. 2019, arXiv:1901.08573."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.adversarial import AdversarialTrainer
from firstline.benchmark.core.ascent import Climb, module_slope
from firstline.benchmark.core.losses import divergences
from firstline.benchmark.core.registry import defense


@defense("trades")
@dataclass(frozen=True)
class Trades(AdversarialTrainer):
    """Fit the clean inputs, and answer the same everywhere in the ball: beta trades one for the other.

    Claims a better balance of clean and robust accuracy than training on worst cases alone. What it moves
    inputs by is the change of the answer, not the loss. Known to be over-estimated by attacks that climb the
    cross-entropy (the published CIFAR-10 network keeps 56.43% under PGD-1000 and 53.08% under AutoAttack: the
    authors' tables, github.com/yaodongyu/TRADES), and to overfit when trained long (Rice et al. 2020,
    arXiv:2002.11569). steps and beta are those of the authors' code for CIFAR-10, stride is nearly (0.007 of
    0.031); the ascent starts uniformly in the ball, since theirs, 0.001 away, is rounded to nothing on a
    grid.
    """

    steps: int = 10
    stride: float = 0.25
    beta: float = 6.0

    def climb(self, module: nn.Module, x: Tensor, y: Tensor) -> Climb:
        """Return the slope of the divergence from the answers at x."""
        with torch.no_grad():
            clean = module(x)
        return lambda points, rows: module_slope(module, points, clean, divergences)

    def loss(self, module: nn.Module, x: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy at x plus beta times the mean divergence of moved from x."""
        clean = module(x)
        return cross_entropy(clean, y) + self.beta * divergences(module(moved), clean).mean()

"""Answers that depend less on the input and more on the class.

Source: Peng, Liu, Zhang, Chen, Wang & Lian 2022, arXiv:2206.05483 (BiDO), with the dependence of Gretton et al. 2005,
Measuring Statistical Dependence with Hilbert-Schmidt Norms, ALT.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from firstline.benchmark.core.contracts import Defense
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import Network

TINY = 1e-12


@defense("bilateral-dependency")
@dataclass(frozen=True)
class BilateralDependency(Defense):
    """Add to the loss `forget` times the dependence of the logits on the inputs, less `keep` times that on the labels.

    Claims to stop inversion at the training: what the answers don't depend on can't be read out of them. The paper
    penalises every hidden layer; here it is the logits alone, which every network has. Dependence is the normalised
    Hilbert-Schmidt norm, from 0 to 1, under Gaussian kernels as wide as the batch is spread. On
    faces it blurs reconstructions only where it costs accuracy, and they are still recognised.
    """

    inputs = ("real",)

    forget: float = 1.0
    keep: float = 1.0

    def objective(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy with both terms, on a batch x (n, *shape), y (n,)."""
        logits = network(x)
        here, inside = near(logits), near(x.flatten(1))
        named = near(one_hot(y, logits.shape[1]).to(logits))
        terms = self.forget * dependence(here, inside) - self.keep * dependence(here, named)
        return cross_entropy(logits, y) + terms


def near(x: Tensor) -> Tensor:
    """Return a Gaussian kernel (n, n) of the rows of x (n, d), as wide as their mean squared distance."""
    squares = (x[:, None] - x[None]).square().sum(2)
    return torch.exp(-squares / squares.mean().detach().clamp_min(TINY))


def dependence(a: Tensor, b: Tensor) -> Tensor:
    """Return how much two kernels (n, n) of the same rows go together: 0 for independent rows, 1 for equal kernels."""
    a, b = ((k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()) for k in (a, b))
    found: Tensor = (a * b).sum() / (a.norm() * b.norm()).clamp_min(TINY)
    return found

"""Softmax regression: the convex model by which poisons are chosen, as attackers of linear models do.

Source: Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, section 4.4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Softmax:
    """A fitted model: weights (classes, d) and bias (classes,)."""

    weights: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (n, classes) of x (n, d)."""
        return x @ self.weights.T + self.bias


def fit_softmax(x: Tensor, y: Tensor, classes: int, decay: float, start: Softmax | None = None) -> Softmax:
    """Return the minimum of the mean cross-entropy on x (n, d), y (n,) plus decay / 2 times the squared weights.

    The bias is not penalised. By L-BFGS in x's precision, from start or else from zero: nothing is random.
    """
    first = start or Softmax(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes))
    weights, bias = (tensor.clone().requires_grad_() for tensor in (first.weights, first.bias))
    optimiser = torch.optim.LBFGS(
        [weights, bias],
        max_iter=300,
        tolerance_grad=1e-6 if x.dtype == torch.float32 else 1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = cross_entropy(x @ weights.T + bias, y) + decay / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return Softmax(weights.detach(), bias.detach())

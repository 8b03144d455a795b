"""Softmax regression: the convex model by which poisons are chosen, as attackers of linear models do.

Source: Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, section 4.4; Newton's method by
conjugate gradients as in Nocedal & Wright 2006, Numerical Optimization, algorithm 7.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

UPDATES = 100  # of Newton's method at most; from zero some ten are needed
HALVINGS = 20  # of a step that does not go down far enough


@dataclass(frozen=True)
class Softmax:
    """A model of inputs (n, d): theta is (classes, d + 1), the biases in its last column."""

    theta: Tensor

    @property
    def weights(self) -> Tensor:
        """The weights, (classes, d)."""
        return self.theta[:, :-1]

    @property
    def bias(self) -> Tensor:
        """The biases, (classes,)."""
        return self.theta[:, -1]

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (n, classes) of x (n, d)."""
        return x @ self.weights.T + self.bias


def fit_softmax(
    x: Tensor,
    y: Tensor,
    classes: int,
    decay: float,
    *,
    start: Softmax | None = None,
    weight: Tensor | None = None,
) -> Softmax:
    """Return the minimum of the mean cross-entropy on x (n, d), y (n,) plus decay / 2 times the squared weights.

    weight (n,) says how often each row counts, once by default. The bias is not penalised. By Newton's method
    in x's precision, from start or else from zero: nothing is random.
    """
    weight = torch.ones_like(x[:, 0]) if weight is None else weight
    share = weight / weight.sum()
    theta = x.new_zeros(classes, x.shape[1] + 1) if start is None else start.theta
    close = 1e-10 if x.dtype == torch.float64 else 1e-5

    def loss_at(theta: Tensor) -> float:
        model = Softmax(theta)
        fit = cross_entropy(model.logits(x), y, reduction="none") @ share
        return float(fit + decay / 2 * model.weights.square().sum())

    loss = loss_at(theta)
    for _ in range(UPDATES):
        model = Softmax(theta)
        error = share[:, None] * (model.logits(x).softmax(1) - one_hot(y, classes))
        gradient = torch.cat([error.T @ x + decay * model.weights, error.sum(0)[:, None]], 1)
        size = float(gradient.norm())
        if size < close:
            break
        direction = solve_hessian(model, x, weight, decay, gradient, tolerance=min(0.1, size**0.5))
        fall, step = float((gradient * direction).sum()), 1.0
        for _ in range(HALVINGS):
            there = loss_at(theta - step * direction)
            if there <= loss - 1e-4 * step * fall:
                break
            step /= 2
        else:  # as low as this precision goes
            break
        theta, loss = theta - step * direction, there
    return Softmax(theta)


def solve_hessian(
    model: Softmax, x: Tensor, weight: Tensor, decay: float, right: Tensor, *, tolerance: float = 1e-10
) -> Tensor:
    """Return v with H v = right, both (classes, d + 1): H is the Hessian of model's loss on x (n, d).

    By conjugate gradients, until what is left of right is tolerance of its length. weight (n,) and decay as in
    `fit_softmax`. Shifting all biases changes no answer, so right must have no part of that.
    """
    p = model.logits(x).softmax(1)
    share = (weight / weight.sum())[:, None] * p

    def hessian(v: Tensor) -> Tensor:
        along = Softmax(v).logits(x)
        out = share * (along - (p * along).sum(1, keepdim=True))
        return torch.cat([out.T @ x + decay * v[:, :-1], out.sum(0)[:, None]], 1)

    found, left, direction = torch.zeros_like(right), right, right
    size = right.square().sum()
    goal = size * tolerance**2
    for _ in range(right.numel()):
        if size <= goal:
            break
        image = hessian(direction)
        step = size / (direction * image).sum()
        found, left = found + step * direction, left - step * image
        before, size = size, left.square().sum()
        direction = left + size / before * direction
    return found

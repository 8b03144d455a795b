"""How a linear model's validation loss changes with one of its training points, once it is fitted again.

Source: Demontis et al. 2019, arXiv:1809.02861, section 3.2 (equations 8 to 10, by implicit differentiation); Biggio,
Nelson & Laskov 2012, arXiv:1206.6389, section 3, for the SVM.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from firstline.attacks.poisoning.softmax import Softmax, fit_softmax, solve_hessian
from firstline.benchmark.core.norms import TINY


@dataclass(frozen=True)
class Sample:
    """Rows x (n, d) float64 with labels y (n,), each counted weight (n,) times."""

    x: Tensor
    y: Tensor
    weight: Tensor

    def plus(self, x: Tensor, y: Tensor, weight: float) -> "Sample":
        """Return the sample with one row more, x (d,) and y (), at its end."""
        more = torch.cat([self.weight, self.weight.new_tensor([weight])])
        return Sample(torch.cat([self.x, x[None]]), torch.cat([self.y, y[None]]), more)


@dataclass(frozen=True)
class Slope:
    """A fitted model's loss on the validation rows, and its gradient (d,) by the last training row.

    model is what the next fit, to nearly the same rows, may start from.
    """

    loss: float
    gradient: Tensor
    model: Softmax | None = None


# Training and validation rows, and the model of the fit before, to the slope.
Refit = Callable[[Sample, Sample, Softmax | None], Slope]


def softmax_slope(
    train: Sample, valid: Sample, start: Softmax | None = None, *, classes: int, decay: float
) -> Slope:
    """Return the slope of softmax regression's cross-entropy.

    The implicit function theorem at the fitted model; the Hessian is inverted by conjugate gradients.
    """
    model = fit_softmax(train.x, train.y, classes, decay, start=start, weight=train.weight)
    answers = model.logits(valid.x)
    loss = cross_entropy(answers, valid.y)
    error = (answers.softmax(1) - one_hot(valid.y, classes)) / len(valid.x)
    right = torch.cat([error.T @ valid.x, error.sum(0)[:, None]], 1)
    adjoint = Softmax(solve_hessian(model, train.x, train.weight, decay, right))

    x, share = train.x[-1], train.weight[-1] / train.weight.sum()
    p = model.logits(x[None])[0].softmax(0)
    along = adjoint.logits(x[None])[0]
    wrong = p - one_hot(train.y[-1], classes)
    gradient = adjoint.weights.T @ wrong + model.weights.T @ (p * along - p * (p @ along))
    return Slope(float(loss), -share * gradient, model)


def svm_slope(train: Sample, valid: Sample, start: Softmax | None = None, *, cost: float) -> Slope:
    """Return the slope of the hinge loss of a linear SVM of two classes.

    The gradient holds as long as no row enters or leaves the margin, and is 0 where the last row is no support
    vector. cost is C, per row.
    """
    machine = SVC(kernel="linear", C=cost, tol=1e-8)
    machine.fit(train.x.numpy(), train.y.numpy(), sample_weight=train.weight.numpy())
    dual = torch.zeros(len(train.x), dtype=train.x.dtype)
    dual[torch.from_numpy(machine.support_).long()] = torch.from_numpy(np.asarray(machine.dual_coef_[0]))
    normal = dual @ train.x
    sign = 2 * valid.y.to(valid.x.dtype) - 1
    gap = 1 - sign * (valid.x @ normal + float(machine.intercept_[0]))
    loss = float(gap.clamp_min(0).mean())

    own, last = dual[-1], len(dual) - 1
    if own == 0:
        return Slope(loss, torch.zeros_like(normal))
    active = gap > 0
    pull = -sign[active] / len(valid.x)  # of the loss, by each active answer
    on_margin = (dual != 0) & (dual.abs() < cost * train.weight * (1 - 1e-6))
    margin, seen = train.x[on_margin], valid.x[active]
    if not len(margin):
        return Slope(loss, own * (pull @ seen))
    ones = torch.ones(len(margin), 1, dtype=margin.dtype)
    system = torch.cat(
        [
            torch.cat([margin @ margin.T, ones], 1),
            torch.cat([ones.T, torch.zeros(1, 1, dtype=margin.dtype)], 1),
        ]
    )
    right = torch.cat([margin @ (pull @ seen), pull.sum()[None]])
    weight = (torch.linalg.pinv(system, hermitian=True) @ right)[:-1]
    gradient = own * (pull @ seen - weight @ margin)
    if bool(on_margin[last]):  # its own condition f(x) = y moves with it too
        gradient = gradient - weight[-1] * normal
    return Slope(loss, gradient)


def climb(refit: Refit, train: Sample, valid: Sample, *, free: Tensor, stride: float, steps: int) -> Tensor:
    """Return train's last row (d,), in [0, 1], moved up the validation loss: the best point met.

    free (d,) is 1 where it may move; stride is the length of a step. Stops early where the slope is 0.
    """
    x, best, most = train.x[-1], train.x[-1], -float("inf")
    model = None
    for step in range(steps + 1):
        slope = refit(Sample(torch.cat([train.x[:-1], x[None]]), train.y, train.weight), valid, model)
        model = slope.model
        if slope.loss > most:
            best, most = x, slope.loss
        gradient = slope.gradient * free
        if step == steps or float(gradient.norm()) < TINY:
            break
        x = (x + stride * gradient / gradient.norm()).clamp(0, 1)
    return best

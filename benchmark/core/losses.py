"""What an attack climbs: per-example losses of logits, all of which rise as the answer turns wrong.

logits are (n, classes). y is (n,), the true classes, or (n, 2), true and target class, for an attack that
wants a particular answer. All but the cross-entropy are above 0 exactly where the answer is wrong.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

Loss = Callable[[Tensor, Tensor], Tensor]


def truth(y: Tensor) -> Tensor:
    """Return the true classes (n,) of y (n,) or (n, 2)."""
    return y if y.ndim == 1 else y[:, 0]


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy (n,) of the true class; for y (n, 2), minus that of the target class."""
    if y.ndim == 1:
        return cross_entropy(logits, y, reduction="none")
    return -cross_entropy(logits, y[:, 1], reduction="none")


def _logit(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Return the best other logit less the true one, (n,); for y (n, 2), the target logit less the true one.

    Source: Carlini & Wagner 2017, arXiv:1608.04644, section V-A, f6 without its bound.
    """
    own = _logit(logits, truth(y))
    if y.ndim == 2:
        return _logit(logits, y[:, 1]) - own
    # Two values tell the best other logit without a copy of all of them.
    best = logits.topk(2, dim=1).values
    return torch.where(own == best[:, 0], best[:, 1], best[:, 0]) - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio, (n,): the margin over the spread of the largest logits.

    It does not change when all logits are shifted or scaled. With three classes the targeted form divides by
    z1 - z3 too; with two there is no third logit to measure the spread by, and the margin itself is
    returned. Source: Croce & Hein 2020, arXiv:2003.01690, equations 6 and 7.
    """
    margin = margins(logits, y)
    classes = logits.shape[1]
    if classes < 3:
        return margin
    top = logits.topk(min(4, classes), dim=1).values
    third = top[:, 2] if y.ndim == 1 or classes == 3 else (top[:, 2] + top[:, 3]) / 2
    return margin / (top[:, 0] - third + 1e-12)


def divergences(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence (n,) of the answers logits from the answers truth, both (n, classes).

    That is KL(p || q) with p the softmax of truth and q that of logits; both get a gradient.
    """
    return kl_div(log_softmax(logits, 1), log_softmax(truth, 1), reduction="none", log_target=True).sum(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropies, "margin": margins, "dlr": dlr}

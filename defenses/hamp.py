"""HAMP: high-entropy soft labels, entropy in the loss, and scores of somebody else.

Source: Chen & Pattabiraman 2024, arXiv:2307.01610; constants from the authors' code for Location.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.training import Network, Recipe
from firstline.defenses.early_stopping import shortened


def top_share(classes: int, gamma: float) -> float:
    """Return what the true class gets when the entropy of a label is gamma times its highest, the others being equal.

    It is between 1 / classes and 1, found by bisection to the last bit: entropy falls as the share rises.
    """
    low, high = 1 / classes, 1.0
    while low < (middle := (low + high) / 2) < high:
        rest = 1 - middle
        entropy = -middle * math.log(middle) - rest * math.log(rest / (classes - 1))
        low, high = (middle, high) if entropy > gamma * math.log(classes) else (low, middle)
    return low


class Disguised(System):
    """Answers with the scores that a random input gets, in the order of the classes for the input at hand.

    So nothing but the order of the classes depends on the input. Each query draws a random input of its own.
    """

    stochastic = True

    def __init__(self, inner: System, space: InputSpace) -> None:
        super().__init__(inner)
        self.stochastic = True
        self.space = space

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer x (n, *shape) with the sorted scores of random inputs."""
        answer = self._inside().respond(x, rng)
        low, high = self.space.box(x)
        draws = torch.rand(x.shape, generator=rng).to(x)
        others = self.space.round(low + draws * (high - low))
        scores = self._inside().respond(others, rng).logits.sort(1, descending=True).values
        order = answer.logits.sort(
            dim=1, descending=True, stable=True
        ).indices  # the first of equals stays first
        return Response(torch.zeros_like(scores).scatter(1, order, scores), answer.acceptance)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer with the scores themselves: their order is all that the disguise leaves."""
        return self._inside().surrogate(x, rng)


@defense("hamp")
@dataclass(frozen=True)
class Hamp(Defense):
    """Train towards labels of high entropy, reward entropy, and answer with the scores of random inputs, reordered.

    Claims that a network which is never confident treats training rows as any other, and that scores which keep
    nothing but the order of the classes leave an attacker with the labels. Known to leak to attackers who train
    systems of their own with it, and by the order of the classes alone (Aerni, Zhang & Tramèr 2024,
    arXiv:2404.17399). gamma is the share of the highest entropy that a label has; alpha weighs the entropy. The
    authors' code averages the divergence over the classes too, so that alpha counts as many times here as there are
    classes. They keep the epoch that is best on held-out rows; here it is the recipe's last, or that of a share of them,
    chosen beforehand: soft labels are learned by heart too, which costs more accuracy than hard ones.
    """

    inputs = ("real",)

    gamma: float = 0.5
    alpha: float = 0.001
    share: float = 1.0

    def recipe(self, task: Task) -> Recipe:
        """Return the task's recipe with a share of its epochs. Raises FirstlineError unless share is one."""
        return shortened(self, task, self.share)

    def objective(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean divergence from the soft labels, less the weighted mean entropy of the answers."""
        if not 0 <= self.gamma < 1 or self.alpha < 0:
            raise FirstlineError(f"{self}: gamma must be at least 0 and below 1, alpha at least 0")
        logs = torch.log_softmax(network(x), 1)
        classes = logs.shape[1]
        top = top_share(classes, self.gamma)
        labels = torch.full_like(logs, (1 - top) / (classes - 1)).scatter(1, y[:, None], top)
        entropy = -(logs.exp() * logs).sum(1).mean()
        return kl_div(logs, labels, reduction="batchmean") - self.alpha * classes * entropy

    def deploy(self, system: System, task: Task) -> System:
        """Return system with its scores disguised."""
        return Disguised(system, task.space)

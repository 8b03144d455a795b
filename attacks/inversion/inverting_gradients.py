"""Inverting gradients. Source: Geiping, Bauermeister, Dröge & Moeller 2020, arXiv:2003.14053, section 4."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from firstline.attacks.inversion.descent import inside
from firstline.attacks.inversion.gradient_matching import labels_of, of_guess
from firstline.benchmark.core.contracts import GradientLeakage, Update
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams


@attack("inverting-gradients")
@dataclass(frozen=True)
class InvertingGradients(GradientLeakage):
    """Find inputs whose gradients point where those that came do, and that vary little: signed Adam, labels first.

    The cost is 1 less the cosine of all gradients, plus `variation` times the mean total variation of images. The rate
    falls to a tenth after 3/8, 5/8 and 7/8 of the steps, as in the authors' code; the paper takes 24,000 steps.
    """

    needs = ("gradients",)
    goals = ("updates",)
    inputs = ("real",)

    steps: int = 600
    rate: float = 0.1
    variation: float = 1e-2
    restarts: int = 1

    def rebuild(
        self, update: Update, space: InputSpace, classes: int, aux: Data | None, rng: Streams
    ) -> tuple[Tensor, Tensor]:
        """Return the inputs of the start that matches best, and the labels."""
        y, draw, like = labels_of(update, classes), rng.torch("start"), update.gradients[0]
        best, least = None, float("inf")
        for _ in range(max(1, self.restarts)):
            x = torch.randn((update.batch, *space.shape), generator=draw).to(like)
            x, cost = self._descend(update, space, x, y)
            if cost < least or best is None:
                best, least = x, cost
        assert best is not None
        return best, y

    def _descend(self, update: Update, space: InputSpace, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
        x = x.requires_grad_()
        optimiser = torch.optim.Adam([x], lr=self.rate)
        falls = [round(self.steps * share) for share in (3 / 8, 5 / 8, 7 / 8)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, falls, 0.1)
        cost = float("inf")
        with torch.enable_grad():
            for _ in range(self.steps):
                found = of_guess(update, cross_entropy(update.network(x), y))
                value = 1 - cosine(found, update.gradients) + self.variation * total_variation(x)
                (slope,) = torch.autograd.grad(value, x)
                x.grad = slope.sign()
                optimiser.step()
                schedule.step()
                with torch.no_grad():
                    x.copy_(inside(space, x.nan_to_num(nan=0.0)))
                cost = float(value.detach())
        return x.detach(), cost if cost == cost else float("inf")


def cosine(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
    """Return the cosine between two sets of gradients, each taken as one vector."""
    a, b = (torch.cat([g.flatten() for g in part]) for part in (mine, theirs))
    found: Tensor = (a @ b) / (a.norm() * b.norm()).clamp_min(TINY)
    return found


def total_variation(x: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels of images x (n, c, h, w); 0 for other inputs."""
    if x.ndim != 4:
        return x.new_zeros(())
    return (x[:, :, 1:] - x[:, :, :-1]).abs().mean() + (x[:, :, :, 1:] - x[:, :, :, :-1]).abs().mean()

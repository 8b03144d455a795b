"""Adversarial unlearning of backdoors. Source: Zeng et al. 2022, arXiv:2110.03735, the minimax of I-BAU.

The inner maximum is found afresh in each round and then held, where the paper differentiates through it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.adversarial import still
from firstline.benchmark.core.contracts import Context, Defense, Incident
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import System, opened
from firstline.benchmark.core.training import train
from firstline.defenses.repair import check_epochs, clean_of, closed, shown

BATCH = 256  # inputs of one step of the ascent


def moved(x: Tensor, shift: Tensor, space: InputSpace) -> Tensor:
    """Return x (n, *shape) with the same shift (*shape), a share of each feature's range, within the box."""
    low, high = space.box(x)
    return torch.minimum(torch.maximum(x + shift * (high - low), low), high)


def universal(
    network: nn.Module, data: Data, space: InputSpace, radius: float, steps: int, rng: Streams
) -> Tensor:
    """Return one shift (*shape) of l2 length at most radius that makes network err most on data."""
    shift = torch.zeros_like(data.x[0])
    order = rng.torch("batches")
    for _ in range(steps):
        rows = torch.randint(len(data), (min(BATCH, len(data)),), generator=order).to(data.x.device)
        batch = data.rows(rows)
        shift.requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(network(moved(batch.x, shift, space)), batch.y), shift)
        step = shift.detach() + radius / 4 * slope / slope.norm().clamp_min(TINY)
        shift = step * (radius / step.norm().clamp_min(TINY)).clamp_max(1)
    return shift


@defense("unlearning")
@dataclass(frozen=True)
class Unlearning(Defense):
    """Find the one shift that fools the network most on clean data, train it to ignore that, and again.

    Claims to undo triggers without knowing them: a trigger is a universal perturbation. In each round the shift
    takes `steps` of a quarter of its radius, and the network epochs on clean inputs with and without it.
    radius is the root mean square of the shift, as a share of each feature's range: 0.15 is 4.2 on 28x28 pixels, and
    8.3 on CIFAR-10, where the paper has 10. Batch normalisation, if there is any, stays as it is. Known to cost
    accuracy where clean data are few, and to leave a network that learns the backdoor again from a few
    triggered rows (Min et al. 2024, arXiv:2410.09838).
    """

    inputs = ("real",)

    radius: float = 0.15
    rounds: int = 5
    steps: int = 10
    epochs: int = 4

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        """Return a copy of system whose network ignores what fooled it in each round."""
        check_epochs(self, self.epochs)
        if self.radius <= 0 or self.rounds < 1 or self.steps < 1:
            raise FirstlineError(f"{self}: radius must be above 0, rounds and steps at least 1")
        repaired, network = opened(system)
        data, space = clean_of(self, incident, ctx), ctx.task.space
        length = self.radius * data.x[0].numel() ** 0.5
        recipe = replace(ctx.task.default.recipe, epochs=self.epochs)
        for number in range(self.rounds):
            rng = ctx.rng.child(str(number))
            with still(network):
                shift = universal(network, data, space, length, self.steps, rng.child("shift"))
            ctx.watch(repaired, 0, self.steps * min(BATCH, len(data)))

            def both(module: nn.Module, x: Tensor, y: Tensor, shift: Tensor = shift) -> Tensor:
                module.eval()  # `train` has put it into training mode, which moves running statistics
                return cross_entropy(module(x), y) + cross_entropy(module(moved(x, shift, space)), y)

            train(network, data, recipe, rng, loss=both, watch=shown(repaired, ctx))
        return closed(repaired)

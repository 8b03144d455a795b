"""Neural Cleanse. Source: Wang et al. 2019, Neural Cleanse, IEEE Symposium on Security and Privacy."""

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

BATCH, RATE = 64, 0.1  # of the search for a trigger; Adam with moments 0.5 and 0.9, as published
PATIENCE, UP, DOWN = 5, 1.5, 1.5**1.5  # how the weight of the size follows the success
NORMAL = 1.4826  # times the median absolute deviation is a standard deviation, of a normal distribution


@dataclass(frozen=True)
class Trigger:
    """A mask (1, *sides) in [0, 1] and a pattern (*shape), to be laid over inputs where the mask says."""

    mask: Tensor
    pattern: Tensor

    def on(self, x: Tensor) -> Tensor:
        """Return x (n, *shape) with the trigger on."""
        return (1 - self.mask) * x + self.mask * self.pattern

    @property
    def size(self) -> float:
        """The l1 length of the mask: about how many pixels it replaces."""
        return float(self.mask.detach().sum())


def find_trigger(
    network: nn.Module, data: Data, label: int, space: InputSpace, steps: int, success: float, rng: Streams
) -> Trigger:
    """Return the smallest trigger found that brings label to a share of at least success of a batch of data.

    The search goes on from where it succeeds to smaller masks: the weight of the mask's size rises after
    PATIENCE successes in a row and falls after as many failures. Where it never succeeds, the whole image.
    """
    low, high = space.box(data.x)
    mask = torch.zeros(1, *data.x.shape[2:], device=data.x.device, requires_grad=True)
    pattern = torch.zeros_like(data.x[0], requires_grad=True)
    optimiser = torch.optim.Adam([mask, pattern], lr=RATE, betas=(0.5, 0.9))
    draw, weight, run = rng.torch("batches"), 1e-3, 0
    best = Trigger(torch.ones_like(mask).detach(), (low + high).expand_as(pattern) / 2)
    for _ in range(steps):
        rows = torch.randint(len(data), (min(BATCH, len(data)),), generator=draw).to(data.x.device)
        now = Trigger(mask.sigmoid(), low + (high - low) * pattern.sigmoid())
        logits = network(now.on(data.x[rows]))
        loss = cross_entropy(logits, torch.full((len(rows),), label, device=data.x.device))
        hit = float((logits.argmax(1) == label).float().mean()) >= success
        if hit and now.size < best.size:
            best = Trigger(now.mask.detach(), now.pattern.detach())
        run = max(run, 0) + 1 if hit else min(run, 0) - 1
        if abs(run) >= PATIENCE:
            weight, run = (weight * UP if hit else weight / DOWN), 0
        optimiser.zero_grad(set_to_none=True)
        (loss + weight * now.mask.sum()).backward()
        optimiser.step()
    return best


def anomaly_index(sizes: Tensor) -> Tensor:
    """Return how many deviations each of sizes (classes,) lies below the median, negative above it.

    The median of an even number is the mean of the middle two: with torch's, the lower one, indices differ.
    """
    sizes = sizes.double()
    middle = sizes.quantile(0.5)
    deviation = NORMAL * (sizes - middle).abs().quantile(0.5)
    return (middle - sizes) / deviation.clamp_min(TINY)


@defense("neural-cleanse")
@dataclass(frozen=True)
class NeuralCleanse(Defense):
    """Look for the smallest trigger of each class; where one is unusually small, train the network to ignore it.

    Claims to find the class that a backdoor brings, by the median absolute deviation of the masks' sizes: an
    index above `index`, on the small side, is suspicious. Unlearning is fine-tuning on clean data, where `stamped`
    of the rows, of all classes, carry the trigger and keep their labels. Without a suspicious class the system
    stays as it is. Known to flag clean networks and to miss triggers that are large, blended or warped (Nguyen &
    Tran 2021, arXiv:2102.10369), and to say little with few classes: of two, no index is above 1. It needs no batch
    normalisation.
    """

    inputs = ("real",)

    steps: int = 300
    success: float = 0.99
    index: float = 2.0
    stamped: float = 0.2
    epochs: int = 5

    def triggers(self, network: nn.Module, data: Data, ctx: Context) -> list[Trigger]:
        """Return the trigger of each class, by clean data of all classes."""
        with still(network):
            return [
                find_trigger(
                    network, data, label, ctx.task.space, self.steps, self.success, ctx.rng.child(str(label))
                )
                for label in range(ctx.task.classes)
            ]

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        """Return a copy of system whose network ignores the triggers of the suspicious classes."""
        check_epochs(self, self.epochs)
        if len(ctx.task.space.shape) != 3 or not 0 < self.stamped <= 1 or self.steps < 1:
            raise FirstlineError(
                f"{self}: it is for images; stamped must be above 0 and at most 1, steps at least 1"
            )
        repaired, network = opened(system)
        data = clean_of(self, incident, ctx)
        found = self.triggers(network, data, ctx)
        ctx.watch(repaired, 0, len(found) * self.steps * min(BATCH, len(data)))
        indices = anomaly_index(torch.tensor([trigger.size for trigger in found]))
        recipe = replace(ctx.task.default.recipe, epochs=self.epochs)
        for label in (indices > self.index).nonzero().flatten().tolist():

            def some(
                module: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator, by: Trigger = found[label]
            ) -> Tensor:
                chosen = (torch.rand(len(x), generator=draw) < self.stamped).to(x.device)
                return torch.where(chosen.reshape(-1, 1, 1, 1), by.on(x), x)

            rng = ctx.rng.child("unlearn", str(label))
            train(network, data, recipe, rng, perturb=some, watch=shown(repaired, ctx))
        return closed(repaired)

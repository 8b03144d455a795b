"""Wrong answers to odd questions. Source: Kariyappa & Qureshi 2020, arXiv:1911.07100 (adaptive misinformation)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import System
from firstline.benchmark.core.training import train
from firstline.defenses.confidence_masking import Masked

SURE = 1e-6  # what the misleading network may not be surer than, under the logarithm


class Misinformed(Masked):
    """Mixes the answers to inputs that the system is not sure about with those of a network that was taught to err."""

    keeps_label = False

    def __init__(self, inner: System, misled: nn.Module, tau: float, sharpness: float) -> None:
        super().__init__(inner)
        self.misled, self.tau, self.sharpness = misled, tau, sharpness

    def told(self, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return shares (n, classes) mixed with wrong ones: the more, the less sure they are; by half at tau (equation 7)."""
        part = torch.sigmoid(self.sharpness * (shares.amax(1, keepdim=True) - self.tau))
        with torch.no_grad():
            wrong = torch.softmax(self.misled(x).double(), 1)
        return part * shares + (1 - part) * wrong


@defense("adaptive-misinformation")
@dataclass(frozen=True)
class AdaptiveMisinformation(Defense):
    """Tell wrong answers to inputs whose largest probability is below tau, and right ones to all others.

    Claims that a thief whose queries are unlike the data learns wrong answers, while honest clients lose little:
    labels change for both where the system is unsure. The wrong answers are those of a network of the task's kind that
    learned to give the true class no probability (the paper's reverse cross-entropy). Known to fall to thieves with
    data of the same kind, whom it takes for honest clients, and who see what honest clients see.
    """

    inputs = ("real",)

    tau: float = 0.9
    sharpness: float = 1000.0
    epochs: int = 5

    def deploy(self, system: System, task: Task) -> System:
        """Return system with a misleading network that knows nothing yet."""
        if not 0 <= self.tau <= 1 or self.sharpness <= 0 or self.epochs < 1:
            raise FirstlineError(f"{self}: tau lies between 0 and 1, sharpness is above 0, epochs at least 1")
        return Misinformed(system, initialise(task.default.build, Streams(0)), self.tau, self.sharpness)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Teach the misleading network to be wrong about data."""
        assert isinstance(system, Misinformed)
        recipe = replace(ctx.task.default.recipe, epochs=self.epochs)
        with torch.enable_grad():  # calibration is no training, and computes no gradients by itself
            train(
                system.misled.requires_grad_(True), data, recipe, ctx.rng.child("misled"), loss=reverse_loss
            )
        system.misled.requires_grad_(False)


def reverse_loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of minus the logarithm of 1 less the probability of the true class."""
    own = torch.softmax(network(x), 1).gather(1, y[:, None])
    return -torch.log((1 - own).clamp_min(SURE)).mean()

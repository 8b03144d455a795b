"""What thieves share: what an answer teaches, a blank network, and fitting it to answers."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from firstline.benchmark.core.contracts import Extraction, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train

SMALLEST = 8  # pixels of a side: smaller images are no job for convolutions


@dataclass(frozen=True)
class Answers:
    """Inputs x (n, *shape) and what the system told about them: shares (n, classes), which add up to 1."""

    x: Tensor
    shares: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __add__(self, other: "Answers") -> "Answers":
        return Answers(torch.cat([self.x, other.x]), torch.cat([self.shares, other.shares]))


@dataclass(frozen=True)
class Thief(Extraction):
    """A thief that fits a network of its own to what it is told.

    With soft it learns the probabilities, where the threat tells them, and else the labels: a thief may prefer these
    where probabilities are tampered with. Its network is the system's, untrained, where the threat grants that, and
    else a small one: two convolutions for images, one hidden layer of `hidden` for all else. It is trained by Adam
    for `updates` steps, and for no less than `epochs` times over the answers.
    """

    needs: ClassVar[tuple[str, ...]] = ("labels",)
    goals = ("scores", "labels")
    inputs = ("real",)

    soft: bool = True
    hidden: int = 128
    updates: int = 1000
    epochs: int = 20
    batch: int = 64
    rate: float = 2e-3

    def extract(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> nn.Module:
        """Return a network fitted to the answers to the queries that this thief chose. Raises FirstlineError without any."""
        return self.fitted(target, self.collected(target, aux, int(target.left()), rng), rng)

    @abstractmethod
    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return the answers to at most budget queries."""

    def ask(self, target: Target, x: Tensor) -> Answers:
        """Return what the system tells about x (n, *shape), one query each; what it refuses teaches nothing."""
        if len(x) == 0:
            return Answers(x, torch.zeros(0, target.classes))
        if self.soft and "scores" in target.threat.grants:
            response = target.scores(x)
            shares = torch.softmax(response.logits.double(), 1)
            good = (response.labels >= 0) & torch.isfinite(shares).all(1)
        else:
            labels = target.labels(x)
            good = labels >= 0
            shares = one_hot(labels.clamp_min(0), target.classes).double()
        return Answers(x[good], shares[good].to(x.dtype))

    def draft(self, target: Target, answers: Answers, rng: Streams) -> nn.Module:
        """Return a network fitted to answers for a fourth of the time: good enough to choose the next queries by."""
        short = replace(self, updates=-(-self.updates // 4), epochs=-(-self.epochs // 4))
        return short.fitted(target, answers, rng)

    def fitted(self, target: Target, answers: Answers, rng: Streams) -> nn.Module:
        """Return a network, fitted to answers from scratch. Raises FirstlineError where there are none."""
        if len(answers) == 0:
            raise FirstlineError(
                f"{self}: no query was answered under {target.threat}; raise the budget in the threat model"
            )
        network = self.blank(target, rng).to(answers.x.device)
        per_epoch = -(-len(answers) // self.batch)
        recipe = Recipe(max(self.epochs, -(-self.updates // per_epoch)), self.batch, self.rate)
        return imitate(network, answers, recipe, rng.child("fit"))

    def blank(self, target: Target, rng: Streams) -> nn.Module:
        """Return an untrained network: the system's where its architecture is granted, or one of the thief's own."""
        if "architecture" in target.threat.grants:
            return initialise(lambda: reset(target.architecture()), rng.child("network"))
        return initialise(self._own(target), rng.child("network"))

    def _own(self, target: Target) -> Callable[[], nn.Module]:
        shape = target.space.shape
        if len(shape) == 3 and min(shape[1:]) >= SMALLEST:
            return lambda: pictures(shape, target.classes, self.hidden)
        width = torch.Size(shape).numel()
        return lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, target.classes)
        )


def pictures(shape: tuple[int, ...], classes: int, hidden: int) -> nn.Module:
    """Return a network of two convolutions for images of shape (channels, height, width)."""
    channels, height, width = shape
    flat = 32 * (height // 4) * (width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(flat, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def reset(module: nn.Module) -> nn.Module:
    """Return module with weights drawn anew: `architecture` gives the same ones each time."""
    for part in module.modules():
        if callable(again := getattr(part, "reset_parameters", None)):
            again()
    return module


def imitate(network: nn.Module, answers: Answers, recipe: Recipe, rng: Streams) -> nn.Module:
    """Return network fitted to answers by the cross-entropy with their shares (Hinton et al. 2015, arXiv:1503.02531)."""

    def loss(module: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
        return -(answers.shares[rows] * torch.log_softmax(module(x), 1)).sum(1).mean()

    numbered = Data.of(answers.x, torch.arange(len(answers), device=answers.x.device))
    return train(network, numbered, recipe, rng, loss=loss)


def owned(aux: Data | None) -> Data:
    """Return the thief's own data. Raises FirstlineError where the threat grants none."""
    if aux is None or len(aux) == 0:
        raise FirstlineError("the thief has no data of its own; write aux=yes in the threat model")
    return aux


def shuffled(count: int, rng: Streams, name: str) -> Tensor:
    """Return the numbers below count in an order of chance."""
    return torch.randperm(count, generator=rng.torch(name))


def uniform(target: Target, count: int, rng: Streams, name: str) -> Tensor:
    """Return count inputs (count, *shape) drawn uniformly from the input space."""
    return target.space.uniform(torch.zeros(0, device=target.device), count, rng.torch(name))

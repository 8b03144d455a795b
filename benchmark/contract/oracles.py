"""A task whose answers are known in advance, so that items are checked against mathematics and not each other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Architecture, Task, initialise
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, System
from firstline.benchmark.core.training import Recipe

SIDE = 8
REACH = {
    "linf": SIDE,
    "l2": 1,
    "l1": 1 / SIDE,
    "cost": 1 / SIDE,
}  # how far along the diagonal a ball of radius 1 reaches


@dataclass(frozen=True)
class Blobs(Task):
    """Two Gaussian clouds of 8x8 "images", gap apart along the diagonal, with spread sigma per pixel.

    The best classifier is linear, and what it keeps under an attack is a tail of the normal distribution.
    """

    name = "blobs"
    version = 1
    modality = "image"
    licence = "made from a seed"
    classes = 2
    space = InputSpace(shape=(1, SIDE, SIDE))
    eps = {"linf": 0.03, "l2": 0.25}  # noqa: RUF012

    gap: float = 0.8
    sigma: float = 0.15
    train: int = 256
    test: int = 256

    def load(self, folder: Path | None) -> Splits:
        """Return the splits, always the same."""
        return Splits(
            *(self.sample(n, name) for n, name in ((self.train, "train"), (self.test, "test"), (128, "aux")))
        )

    def sample(self, n: int, name: str) -> Data:
        """Return n points (n, 1, 8, 8), classes in turn."""
        y = torch.arange(n) % 2
        noise = torch.randn(n, 1, SIDE, SIDE, generator=Streams(0).torch("blobs", name))
        x = 0.5 + (y * 2 - 1).reshape(-1, 1, 1, 1) * self.gap / 2 / SIDE + self.sigma * noise
        return Data.of(x.clamp(0, 1), y)

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """A small MLP."""
        return {"mlp": Architecture(_mlp, Recipe(epochs=10, batch=32, rate=1e-2))}

    def best(self) -> System:
        """Return the best classifier: the sign of the mean pixel less one half."""
        linear = initialise(lambda: _RowByRow(SIDE * SIDE, 2), Streams(0))
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            linear.weight.copy_(torch.stack([-torch.ones(SIDE * SIDE), torch.ones(SIDE * SIDE)]))
            linear.bias.copy_(torch.tensor([0.5, -0.5]) * SIDE * SIDE)
        return Bare(nn.Sequential(nn.Flatten(), linear)).eval().requires_grad_(False)

    def best_robust_accuracy(self, norm: str, eps: float) -> float:
        """Return what the best classifier keeps under a ball of eps (clipping to the box aside)."""
        reach = eps * REACH[norm]
        return 0.5 * math.erfc((reach - self.gap / 2) / (self.sigma * math.sqrt(2)))

    def broken(self, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        """Return which examples (n,) an attack can break at all: their distance to the boundary is below eps."""
        signed = (x.flatten(1).mean(1) - 0.5) * SIDE * (2 * y - 1)
        if norm == "l0":  # the features with the most room move all the way
            room = torch.where(column(y, x) > 0, x, 1 - x).flatten(1).sort(1, descending=True).values
            return signed <= room[:, : int(eps)].sum(1) / SIDE
        return signed <= eps * REACH[norm]


class Pictures(Blobs):
    """The same clouds for a network with a convolution, which some defenses need."""

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """One convolution."""
        return {"cnn": Architecture(_cnn, Recipe(epochs=10, batch=32, rate=1e-2))}


class Coins(Blobs):
    """The same clouds under labels that a coin gave: who is right about a row has learned it by heart."""

    def sample(self, n: int, name: str) -> Data:
        """Return n points (n, 1, 8, 8), labelled at random."""
        y = torch.randint(2, (n,), generator=Streams(0).torch("coins", name))
        return replace(super().sample(n, name), y=y)

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """An MLP that is large enough, and trained for long enough, to learn every row."""
        return {"mlp": Architecture(_large, Recipe(epochs=60, batch=32, rate=1e-2))}


class _RowByRow(nn.Linear):
    """Sums each row by itself: a matrix product rounds otherwise in a batch of another size, on some processors."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (n, out) for x (n, in)."""
        return (x[:, None] * self.weight).sum(2) + self.bias


class _Centred(nn.Module):
    monotone = True  # no output falls when an input rises

    def forward(self, x: Tensor) -> Tensor:
        """Return x about 0, which is where networks learn fast."""
        return (x - 0.5) * 4


def _mlp() -> nn.Module:
    return nn.Sequential(_Centred(), nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.ReLU(), nn.Linear(16, 2))


def _large() -> nn.Module:
    return nn.Sequential(_Centred(), nn.Flatten(), nn.Linear(SIDE * SIDE, 128), nn.ReLU(), nn.Linear(128, 2))


def _cnn() -> nn.Module:
    convolution = nn.Conv2d(1, 8, 3, padding=1)
    return nn.Sequential(_Centred(), convolution, nn.ReLU(), nn.Flatten(), nn.Linear(8 * SIDE * SIDE, 2))

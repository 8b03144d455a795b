"""An autoencoder that reforms images and refuses those that it can't. Source: Meng & Chen 2017, arXiv:1705.09064."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, mse_loss

from firstline.benchmark.core.contracts import Context, Defense, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.training import Recipe, train
from firstline.defenses.detector import Detector, check_fpr, halves
from firstline.defenses.transformation import images_only

BATCH, RATE = 64, 1e-2


class Autoencoder(nn.Module):
    """3x3 convolutions of so many channels, once at half the resolution: the paper's network for MNIST.

    ReLU where the paper has sigmoids, which take many times the updates.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(channels, width, 3, padding=1)
        self.inside = nn.Conv2d(width, width, 3, padding=1)
        self.again = nn.Conv2d(width, width, 3, padding=1)
        self.grow = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return reconstructions of images x (n, channels, h, w) in [0, 1]."""
        small = avg_pool2d(torch.relu(self.shrink(x)), 2, ceil_mode=True)
        small = torch.relu(self.again(torch.relu(self.inside(small))))
        whole = torch.relu(self.grow(interpolate(small, size=x.shape[2:])))
        return torch.sigmoid(self.out(whole))


class Reformed(Detector):
    """Answers each image's reconstruction, and scores the image by its mean absolute distance from that."""

    def __init__(self, inner: System, autoencoder: nn.Module, low: float, high: float) -> None:
        super().__init__(inner)
        self.autoencoder, self.low, self.high = autoencoder, low, high

    def unit(self, x: Tensor) -> Tensor:
        """Return x (n, c, h, w) with its range moved to [0, 1]."""
        return (x - self.low) / (self.high - self.low)

    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        """Return the answer to the reconstructions of x (n, c, h, w), and the distances (n,), as shares of the range."""
        image = self.unit(x)
        rebuilt: Tensor = self.autoencoder(image)
        answer = self._inside().respond(self.low + (self.high - self.low) * rebuilt, rng)
        return answer, (image - rebuilt).abs().flatten(1).mean(1)


@defense("magnet")
@dataclass(frozen=True)
class MagNet(Defense):
    """Replace each image by its reconstruction, and refuse those that differ much from it.

    Claims that adversarial examples lie off the manifold that an autoencoder learns: near ones are moved back to
    it, far ones are refused. fpr is the share of clean inputs that it may refuse, noise the standard deviation of
    what the autoencoder learns to remove, as a share of the range; both as in the paper for MNIST, where fpr is
    0.001. One autoencoder serves as reformer and as detector. Known to fall to examples made on an autoencoder of
    the attacker's own (Carlini & Wagner 2017, arXiv:1711.08478), and to gradients through this one, which is what
    attacks use here.
    """

    inputs = ("real",)

    fpr: float = 0.05
    noise: float = 0.1
    width: int = 8
    updates: int = 1000

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind an untrained autoencoder."""
        images_only(self, task)
        check_fpr(self, self.fpr)
        if self.noise < 0 or self.width < 1 or self.updates < 1:
            raise FirstlineError(f"{self}: noise must be at least 0, width and updates at least 1")
        low, high = (float(end) for end in task.space.box(torch.zeros(1)))
        return Reformed(system, self._untrained(task, Streams(0)), low, high)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Train the autoencoder on one half of the data, and choose the threshold by the other."""
        assert isinstance(system, Reformed)
        known, fresh = halves(data, ctx)
        system.autoencoder.load_state_dict(self._untrained(ctx.task, ctx.rng).state_dict())
        images = Data(system.unit(known.x), known.y, known.ids)
        epochs = -(-self.updates * BATCH // len(images))
        noise = ctx.rng.torch("noise")

        def loss(autoencoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            louder = x + self.noise * torch.randn(x.shape, generator=noise).to(x)
            return mse_loss(autoencoder(louder), x)

        with torch.enable_grad():
            train(system.autoencoder, images, Recipe(epochs, BATCH, RATE), ctx.rng, loss=loss)
        system.set_threshold(fresh.x, self.fpr, ctx.rng.torch("answers"))

    def _untrained(self, task: Task, rng: Streams) -> nn.Module:
        return initialise(lambda: Autoencoder(task.space.shape[0], self.width), rng)

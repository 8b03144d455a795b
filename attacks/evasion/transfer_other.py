"""Transfer from networks of another architecture, for an attacker who does not know the system's.

Source: Papernot, McDaniel & Goodfellow 2016, arXiv:1605.07277; the ascent is that of `transfer`.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from firstline.attacks.evasion.transfer import Transferred, own_data
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import Target


@attack("transfer-other", version=1)
@dataclass(frozen=True)
class TransferOther(Transferred):
    """Train generic networks on the attacker's own data, and climb their mean logits.

    For images every other network is convolutional, the rest are perceptrons, as all are for flat inputs.
    The settings are those of `transfer`.
    """

    needs = ("aux", "labels")

    surrogates: int = 2

    def members(self, target: Target, region: Region, rng: Streams) -> list[System]:
        """Return generic networks, each with initial weights and batches of its own."""
        data, device = own_data(target, "aux"), region.centre.device
        return [
            self.trained(
                partial(_network, data.x, target.classes, number), data, rng.child(str(number)), device
            )
            for number in range(self.surrogates)
        ]


class _Standard(nn.Module):
    """Inputs less the mean, over the spread of the attacker's data: per feature, of images over all pixels."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        over = tuple(range(x.ndim)) if x.ndim == 4 else (0,)
        self.register_buffer("mean", x.mean(over, keepdim=True))
        self.register_buffer("spread", x.std(over, keepdim=True, correction=0).clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised inputs."""
        return (x - self.get_buffer("mean")) / self.get_buffer("spread")


def _network(x: Tensor, classes: int, number: int) -> nn.Module:
    """Return the network of this number for inputs like x (n, *shape)."""
    if x.ndim != 4 or number % 2:
        return nn.Sequential(
            _Standard(x),
            nn.Flatten(),
            nn.Linear(x[0].numel(), 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )
    channels, h, w = x.shape[1:]
    return nn.Sequential(
        _Standard(x),
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * -(-h // 4) * -(-w // 4), classes),
    )

"""MI-Face in the codes of an autoencoder. Source: Fredrikson, Jha & Ristenpart 2015, CCS, section 5 (Process-DAE)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.inversion.descent import average, descend
from firstline.benchmark.core.contracts import Inversion, initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train


class Autoencoder(nn.Module):
    """Inputs (n, *shape) to codes (n, width) in [-1, 1], and back into the box."""

    def __init__(self, space: InputSpace, width: int) -> None:
        super().__init__()
        self.space = space
        features = torch.Size(space.shape).numel()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.Tanh())
        self.decoder = nn.Sequential(nn.Linear(width, features), nn.Sigmoid())

    def decode(self, codes: Tensor) -> Tensor:
        """Return the inputs (n, *shape) of codes (n, width)."""
        share: Tensor = self.decoder(codes).reshape(-1, *self.space.shape)
        low, high = self.space.box(share)
        return low + share * (high - low)

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes back of x (n, *shape)."""
        return self.decode(self.encoder(x))


@attack("mi-face-latent")
@dataclass(frozen=True)
class MiFaceLatent(Inversion):
    """Learn what inputs look like from one's own data, and go down the system's gradient among such inputs only.

    The paper moves within the autoencoder that its target network begins with. Here the attacker trains one on its
    own data, so that any system can be attacked: `width` codes, from which inputs are drawn. All classes start from
    the code of the mean. Known to fail where the attacker's own data are few, or show something else.
    """

    needs = ("gradients", "aux")
    goals = ("classes",)
    inputs = ("real",)

    width: int = 64
    epochs: int = 300
    steps: int = 5000
    rate: float = 1.0
    patience: int = 100
    enough: float = 0.99

    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        """Return the input of the best code of each class, (classes, *shape). Raises FirstlineError without own data."""
        middle = average(aux)
        assert aux is not None
        network = initialise(lambda: Autoencoder(target.space, self.width), rng.child("network"))
        assert isinstance(network, Autoencoder)
        network.to(middle.device)

        def loss(module: nn.Module, given: Tensor, rows: Tensor) -> Tensor:
            error: Tensor = (module(given) - given).square().flatten(1).sum(1).mean()
            return error

        with torch.enable_grad():
            train(network, aux, Recipe(self.epochs, 64, 1e-3), rng.child("fit"), loss=loss)
        network.requires_grad_(False)

        def slopes(codes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            leaf = codes.detach().requires_grad_()
            with torch.enable_grad():
                shares = torch.softmax(target.logits(network.decode(leaf)).double(), 1)
                cost = 1 - shares.gather(1, rows[:, None])[:, 0]
                (slope,) = torch.autograd.grad(cost.sum(), leaf)
            return cost.detach().to(codes), slope

        found, taken = descend(
            slopes,
            network.encoder(middle).expand(target.classes, -1).clone(),
            clip=lambda codes: codes.clamp(-1, 1),
            steps=self.steps,
            rate=self.rate,
            patience=self.patience,
            enough=self.enough,
        )
        target.tell("steps", taken)
        rebuilt: Tensor = network.decode(found)
        return rebuilt

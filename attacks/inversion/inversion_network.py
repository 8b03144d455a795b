"""A network that turns answers into inputs. Source: Yang, Zhang, Chang & Liang 2019, arXiv:1902.08552."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.inversion.descent import inside
from firstline.benchmark.core.contracts import Inversion, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train


@attack("inversion-network")
@dataclass(frozen=True)
class InversionNetwork(Inversion):
    """Ask about one's own data, and learn to get the inputs back from the answers; then show it each class's answer.

    The network takes log probabilities, cut off below the largest `kept` (the paper's truncation; 0 keeps all) and less
    their mean, through one hidden layer to an input. What stands for a class is the mean answer to those of one's
    own rows that the system puts there, or else an answer that is sure of it.
    """

    needs = ("scores", "aux")
    goals = ("classes",)
    inputs = ("real",)

    hidden: int = 512
    epochs: int = 200
    batch: int = 64
    rate: float = 1e-3
    kept: int = 0

    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        """Return what the network makes of each class, (classes, *shape). Raises FirstlineError without own data."""
        if aux is None or len(aux) == 0:
            raise FirstlineError("the attacker has no data of its own; write aux=yes in the threat model")
        own = aux.x[: target.afford(len(aux))]
        if len(own) == 0:
            raise FirstlineError(f"{self} asks about its own data; {threat} leaves no query for that")
        answer = target.scores(own)
        told = self.told(answer.logits)
        width = own[0].numel()
        network = initialise(
            lambda: nn.Sequential(
                nn.Linear(target.classes, self.hidden), nn.ReLU(), nn.Linear(self.hidden, width)
            ),
            rng.child("network"),
        ).to(own.device)
        flat = own.flatten(1)

        def loss(module: nn.Module, given: Tensor, rows: Tensor) -> Tensor:
            error: Tensor = (module(given) - flat[rows]).square().mean()
            return error

        numbered = Data.of(told, torch.arange(len(own), device=own.device))
        with torch.enable_grad():
            train(network, numbered, Recipe(self.epochs, self.batch, self.rate), rng.child("fit"), loss=loss)
        with torch.no_grad():
            found: Tensor = network(_of_classes(told, answer.labels, target.classes))
        return inside(target.space, found.reshape(target.classes, *target.space.shape))

    def told(self, logits: Tensor) -> Tensor:
        """Return what the network is shown of logits (n, classes)."""
        logs = torch.log_softmax(logits.double(), 1).clamp_min(-30.0).nan_to_num(nan=-30.0)
        if 0 < self.kept < logs.shape[1]:
            least = logs.topk(self.kept, dim=1).values[:, -1:]
            logs = torch.where(logs >= least, logs, -30.0)
        return (logs - logs.mean(1, keepdim=True)).float()


def _of_classes(told: Tensor, labels: Tensor, classes: int) -> Tensor:
    """What stands for each class, (classes, classes): the mean of told (n, classes) with its label, or a sure answer.

    A sure answer is as sure as those that the network has seen are on average: far beyond them it draws noise.
    """
    sure = torch.eye(classes, device=told.device)
    sure = (sure - 1 / classes) * told.amax(1).mean() / (1 - 1 / classes)
    return torch.stack(
        [told[labels == c].mean(0) if bool((labels == c).any()) else sure[c] for c in range(classes)]
    )

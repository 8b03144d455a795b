"""An ensemble trained to disagree on the wrong classes (ADP). Source: Pang et al. 2019, arXiv:1901.08846."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import train
from firstline.defenses.ensemble import Members, members_of, together

FLOOR = 1e-6  # added to the diagonal, so that members who agree have a logarithm


def log_diversity(shares: Tensor, y: Tensor) -> Tensor:
    """Return the logarithm of the ensemble diversity (n,) of probabilities shares (members, n, classes).

    Each member's probabilities of the classes other than y (n,) become a vector of length 1; the diversity is
    the squared volume that the members' vectors span: 1 where they are orthogonal, 0 where two are alike, or
    where there are as many members as classes.
    """
    classes = shares.shape[2]
    other = one_hot(y, classes) == 0
    vectors = normalize(shares[:, other].reshape(len(shares), len(y), classes - 1), dim=2).transpose(0, 1)
    gram = vectors @ vectors.transpose(1, 2)
    volume: Tensor = torch.linalg.slogdet(gram + FLOOR * torch.eye(len(shares)).to(gram)).logabsdet
    return volume


def entropy(logits: Tensor) -> Tensor:
    """Return Shannon's entropy (n,) in nats of probabilities whose logarithms are logits (n, classes)."""
    return -(logits.exp() * logits).sum(1)


@defense("diverse-ensemble")
@dataclass(frozen=True)
class DiverseEnsemble(Defense):
    """Train members together, with a reward for probabilities of the wrong classes that differ among them.

    Claims that an adversarial example then does not transfer from one member to the others. Known to fall to
    an attack on the mean that takes enough steps (Tramèr et al. 2020, arXiv:2002.08347); what is left of the
    claim is little. alpha weighs the entropy of the mean, beta the logarithm of the diversity, both as in the
    paper, which has 3 members too. With as many members as classes or more there is no diversity, and only
    the entropy counts.
    """

    members: int = 3
    alpha: float = 2.0
    beta: float = 0.5

    def build(self, task: Task) -> nn.Module:
        """Return the untrained members."""
        return members_of(task, self.members, self.name)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by the task's recipe, all members on the same batches."""
        beta = self.beta if self.members < ctx.task.classes else 0.0

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            assert isinstance(network, Members)
            each = network.each(x)
            errors = -each[:, torch.arange(len(y), device=y.device), y].sum(0)
            reward = self.alpha * entropy(together(each))
            if beta:
                reward = reward + beta * log_diversity(each.exp(), y)
            return (errors - reward).mean()

        return train(module, data, ctx.task.default.recipe, ctx.rng, loss=loss)

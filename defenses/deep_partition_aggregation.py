"""Deep partition aggregation. Source: Levine & Feizi 2021, arXiv:2006.14768, theorem 1.

The base learners are ridge regressions in closed form where the paper has networks: hundreds of them are fitted
in seconds, on the CPU, and are the same on every run.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Bare, Certificate, System

SOFT = 0.1  # temperature of the base learners' scores, in [0, 1], where an attacker climbs them


def poison_radius(votes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the answers (n,) of votes (n, classes), and how many voters can change without changing them, (n,) int64.

    The most votes win, the smaller class in a tie. Each row that is added to the training data or taken away
    changes one voter; so does a row whose label is changed, as voters are chosen by inputs, and a row whose input
    is changed counts twice. Theorem 1.
    """
    classes = torch.arange(votes.shape[1], device=votes.device)
    ranked = votes.long() * votes.shape[1] - classes  # no two are equal, and ties go to the smaller class
    answer = ranked.argmax(1)
    won = votes.long().gather(1, answer[:, None])
    rivals = votes.long() + (classes < answer[:, None]).long()
    rivals.scatter_(1, answer[:, None], -1)
    return answer, (won.squeeze(1) - rivals.amax(1)) // 2


def places(x: Tensor, partitions: int) -> list[tuple[int, bytes]]:
    """Return for each input of x (n, *shape) its partition, and a digest: both depend on its bytes alone."""
    rows = [hashlib.sha256(row.tobytes()).digest() for row in x.cpu().contiguous().numpy()]
    return [(int.from_bytes(digest[:8], "big") % partitions, digest) for digest in rows]


def ridge(points: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Return the weights (width, classes) that map points (n, width) to targets (n, classes), for a penalty of weight."""
    n, width = points.shape
    eye = torch.eye(min(n, width), dtype=points.dtype, device=points.device)
    if n < width:
        dual: Tensor = points.T @ torch.linalg.solve(points @ points.T + weight * eye, targets)
        return dual
    primal: Tensor = torch.linalg.solve(points.T @ points + weight * eye, points.T @ targets)
    return primal


class Voters(nn.Module):
    """Linear classifiers that vote. Untrained, all vote for class 0, as one does whose partition has no rows."""

    def __init__(self, space: InputSpace, classes: int, voters: int) -> None:
        super().__init__()
        low, high = (side.expand(space.shape).flatten().clone() for side in space.box(torch.zeros(1)))
        self.register_buffer("low", low)
        self.register_buffer("width", high - low)
        self.register_buffer("weight", torch.zeros(voters, len(low), classes))
        self.register_buffer("bias", torch.zeros(voters, classes))

    def points(self, x: Tensor) -> Tensor:
        """Return x (n, *shape) as (n, features), as shares of the range."""
        shares: Tensor = (x.flatten(1) - self.get_buffer("low")) / self.get_buffer("width")
        return shares

    def scores(self, x: Tensor) -> Tensor:
        """Return the score of each class by each voter for x (n, *shape), (n, voters, classes)."""
        weight = self.get_buffer("weight")
        flat = self.points(x) @ weight.transpose(0, 1).flatten(1)
        return flat.reshape(len(x), *self.get_buffer("bias").shape) + self.get_buffer("bias")

    def votes(self, x: Tensor) -> Tensor:
        """Return how many vote for each class, (n, classes)."""
        scores = self.scores(x)
        return one_hot(scores.argmax(2), scores.shape[2]).sum(1)

    def certified(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the answers to x (n, *shape), and how many rows of poison can't change each, (n,): `poison_radius`."""
        return poison_radius(self.votes(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return logarithms of the vote shares (n, classes), ties broken, with the gradient of a soft vote."""
        scores = self.scores(x)
        voters, classes = scores.shape[1:]
        ahead = 1 - torch.arange(1, classes + 1, device=x.device) / (classes + 1)
        hard = one_hot(scores.argmax(2), classes).sum(1) + ahead
        logits = torch.log(hard / (voters + 1))
        soft = torch.log_softmax(scores / SOFT, 2).logsumexp(1)
        return logits + (soft - soft.detach())


class Voting(System):
    """Answers as the voters do, and proves how many rows of training data can't change an answer."""

    def certify(self, x: Tensor, norm: str, rng: torch.Generator) -> Certificate | None:
        """Return the answers and radii of `Voters.certified` in rows of training data, as norm 'rows' asks."""
        inner = self._inside()
        if norm != "rows" or not isinstance(inner, Bare):
            return None
        assert isinstance(inner.module, Voters)
        answers, rows = inner.module.certified(x)
        return Certificate(answers, rows.to(x.dtype))


@defense("deep-partition-aggregation", version=2)
@dataclass(frozen=True)
class DeepPartitionAggregation(Defense):
    """Split the training data by a hash of the inputs, fit a classifier to each part, and let them vote.

    Claims a proof: of each answer, how many rows of the training data can be added, taken away or relabelled, in
    whatever way, without changing it; no proof is left where a layer below changes inputs. Known to cost accuracy, since each classifier sees one
    part of the data, and to prove nothing about test-time changes: a trigger is no poison to linear voters that
    never saw it, but an adversarial example is one to all. The classifiers here are linear, with a ridge penalty, on
    features as shares of their ranges, codes of categories too. partitions is 50 as for CIFAR-10 in the paper,
    which has 1,200 and 3,000 for MNIST.
    """

    inputs = ("real",)

    partitions: int = 50
    penalty: float = 1.0

    def build(self, task: Task) -> nn.Module:
        """Return voters that know nothing."""
        if self.partitions < 1 or self.penalty <= 0:
            raise FirstlineError(f"{self}: partitions must be at least 1, and penalty above 0")
        return Voters(task.space, task.classes, self.partitions)

    def deploy(self, system: System, task: Task) -> System:
        """Return system with its proof."""
        return Voting(system)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module with each voter fitted to its part of data. Only what the rows hold counts, not their order."""
        assert isinstance(module, Voters)
        parts: list[list[tuple[bytes, int, int]]] = [[] for _ in range(self.partitions)]
        for row, (place, digest) in enumerate(places(data.x, self.partitions)):
            parts[place].append((digest, int(data.y[row]), row))
        points = module.points(data.x).double()
        targets = one_hot(data.y, ctx.task.classes).double()
        for voter, part in enumerate(parts):
            if part:
                # Sums are rounded, so that the rows of a part need an order of their own.
                rows = torch.tensor([row for _, _, row in sorted(part)], device=data.x.device)
                inside, target = points[rows], targets[rows]
                weight = ridge(inside - inside.mean(0), target - target.mean(0), self.penalty)
                module.get_buffer("weight")[voter] = weight
                module.get_buffer("bias")[voter] = target.mean(0) - inside.mean(0) @ weight
        return module.eval()

"""A capsule network. Source: Sabour, Frosst & Hinton 2017, arXiv:1710.09829, sections 2 to 4."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import train

SCALE = 10.0  # logits are lengths, which are below 1, times this, so that a softmax of them is not flat
UPPER, LOWER = 0.9, 0.1  # m+ and m- of equation 4
ABSENT = 0.5  # lambda of equation 4
SIZE, OUTER = 8, 16  # numbers in a primary capsule and in a digit capsule


def squash(s: Tensor) -> Tensor:
    """Return vectors s (…, d) in their direction, with a length in [0, 1) that grows with theirs (equation 1)."""
    square = s.square().sum(-1, keepdim=True)
    return s * (square + TINY).sqrt() / (1 + square)


def routed(votes: Tensor, routings: int) -> Tensor:
    """Return the outer capsules (n, outer, d) that votes (n, inner, outer, d) agree on (procedure 1)."""
    agreement = torch.zeros_like(votes[..., 0])
    for _ in range(routings - 1):
        outer = squash((torch.softmax(agreement, 2)[..., None] * votes).sum(1))
        agreement = agreement + (votes * outer[:, None]).sum(3)
    return squash((torch.softmax(agreement, 2)[..., None] * votes).sum(1))


def margin_loss(lengths: Tensor, y: Tensor) -> Tensor:
    """Return the mean margin loss of the classes' capsule lengths (n, classes) for classes y (n,) (equation 4)."""
    present = one_hot(y, lengths.shape[1])
    short, long = (UPPER - lengths).clamp_min(0).square(), (lengths - LOWER).clamp_min(0).square()
    return (present * short + ABSENT * (1 - present) * long).sum(1).mean()


class Capsules(nn.Module):
    """A convolution, a convolution whose channels are capsules, and a capsule for each class."""

    def __init__(
        self, shape: tuple[int, ...], classes: int, channels: int, kinds: int, routings: int
    ) -> None:
        super().__init__()
        self.routings = routings
        inside, height, width = shape
        kernel = min(9, (min(height, width) // 3) | 1)  # 9 at 28 pixels and above as in the paper, 3 at 8
        self.features = nn.Conv2d(inside, channels, kernel)
        self.primary = nn.Conv2d(channels, kinds * SIZE, kernel, stride=2)
        sides = [(side - 2 * (kernel - 1) - 1) // 2 + 1 for side in (height, width)]
        inner = kinds * sides[0] * sides[1]
        self.weight = nn.Parameter(0.1 * torch.randn(inner, classes, OUTER, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        """Return SCALE times the lengths of the classes' capsules, (n, classes)."""
        maps = self.primary(torch.relu(self.features(x)))
        inner = squash(maps.unflatten(1, (-1, SIZE)).movedim(2, -1).flatten(1, 3))
        votes = torch.einsum("iocd,nid->nioc", self.weight, inner)
        return SCALE * (routed(votes, self.routings).square().sum(2) + TINY).sqrt()


@defense("capsule-network")
@dataclass(frozen=True)
class CapsuleNetwork(Defense):
    """Use a network of capsules, groups of neurons that vote for what they are part of, by agreement.

    Claims robustness to affine changes, and was hoped to be harder to fool; known to fall to the attacks that
    break convolutional networks, and to perturbations no larger (Michels et al. 2019, arXiv:1906.03612). channels
    and kinds of primary capsules are 256 and 32 in the paper, and fewer here, where networks are small; the
    decoder that it trains beside, to reconstruct inputs, is left out.
    """

    inputs = ("real",)

    channels: int = 64
    kinds: int = 8
    routings: int = 3

    def build(self, task: Task) -> nn.Module:
        """Return the untrained network."""
        shape = task.space.shape
        if len(shape) != 3 or min(shape[1:]) < 7:
            raise FirstlineError(
                f"{self.name} takes images (channels, height, width) of at least 7x7 pixels; the inputs of "
                f"{task.name} have shape {shape}"
            )
        if min(self.channels, self.kinds, self.routings) < 1:
            raise FirstlineError(f"{self}: channels, kinds and routings must be at least 1")
        return Capsules(shape, task.classes, self.channels, self.kinds, self.routings)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by the task's recipe with the margin loss."""

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return margin_loss(network(x) / SCALE, y)

        return train(module, data, ctx.task.default.recipe, ctx.rng, loss=loss)

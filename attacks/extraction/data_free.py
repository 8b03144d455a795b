"""Copies without data, by a generator of queries.

Source: Truong et al. 2021, Data-free model extraction, arXiv:2011.14779, sections 3 and 4.
"""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from firstline.attacks.extraction.copying import SMALLEST, Answers, Thief
from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target

LEAST = -30.0  # of a logarithm of a probability: rounded answers may say 0


@attack("data-free")
@dataclass(frozen=True)
class DataFree(Thief):
    """Ask what a generator makes up, which learns to make what copy and system answer differently.

    In each of `rounds` a copy is fitted to all answers so far. The generator climbs the l1 distance of the two's
    logits, `climbs` times, with slopes estimated by forward differences: an answer at the input and one beside it,
    where the paper has as many. Half of the queries go there, the others to fresh inputs of the generator. The paper
    spends millions of queries, and fits the copy on the way; here it is fitted once more at the end, to all answers.
    """

    needs = ("scores",)
    goals = ("scores",)  # type: ignore[assignment]  # fewer than other thieves

    rounds: int = 10
    climbs: int = 5
    latent: int = 32
    pace: float = 2e-3
    step: float = 1e-2

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return all answers: those that slopes were estimated from too."""
        generator = initialise(
            lambda: Generator(target.space, self.latent, self.hidden), rng.child("generator")
        )
        generator.to(target.device)
        optimiser = torch.optim.Adam(generator.parameters(), lr=self.pace)
        draw = rng.torch("latent")
        each = ceil(budget / (self.rounds + 1))
        found = self.ask(target, self._made(generator, target, each, draw))
        while (left := min(each, int(target.left()))) > 0:
            pairs = left // (4 * self.climbs)
            if len(found) and pairs:
                copy = self.draft(target, found, rng.child(f"after {len(found)}")).requires_grad_(False)
                for _ in range(self.climbs):
                    found = found + self._climbed(generator, optimiser, copy, target, pairs, draw)
            fresh = max(1, left - 2 * pairs * self.climbs)
            found = found + self.ask(target, self._made(generator, target, fresh, draw))
        return found

    @torch.no_grad()
    def _made(self, generator: nn.Module, target: Target, count: int, draw: torch.Generator) -> Tensor:
        return target.space.round(generator(self._noise(target, count, draw)))

    def _noise(self, target: Target, count: int, draw: torch.Generator) -> Tensor:
        return torch.randn(count, self.latent, generator=draw).to(target.device)

    def _climbed(
        self,
        generator: nn.Module,
        optimiser: torch.optim.Optimizer,
        copy: nn.Module,
        target: Target,
        pairs: int,
        draw: torch.Generator,
    ) -> Answers:
        """Let generator take one step up the distance between copy and system; return the answers that it took."""
        with torch.enable_grad():
            x = generator(self._noise(target, pairs, draw))
        here = target.space.round(x.detach())
        # Signs of chance: a step of one level of the grid is the smallest that a query can take.
        signs = (torch.randint(0, 2, x.shape, generator=draw) * 2 - 1).to(here)
        grid = target.space.grid
        beside = target.space.round(
            here + signs * max(self.step, max(grid) if isinstance(grid, tuple) else grid)
        )
        asked = torch.cat([here, beside])
        heard = target.scores(asked)
        shares = torch.softmax(heard.logits.double(), 1)
        good = (heard.labels >= 0) & torch.isfinite(shares).all(1)
        with torch.no_grad():
            first, second = apart(copy(asked), shares).nan_to_num(nan=0.0).split(pairs)
        both = good[:pairs] & good[pairs:]
        moved = (beside - here).flatten(1)
        rise = torch.where(both, second - first, 0.0) / moved.square().sum(1).clamp_min(1e-12)
        optimiser.zero_grad()
        with torch.enable_grad():
            (-(x.flatten(1) * rise[:, None].to(x) * moved).sum() / pairs).backward()
        optimiser.step()
        return Answers(asked[good], shares[good].to(asked.dtype))


def apart(logits: Tensor, shares: Tensor) -> Tensor:
    """Return how far, in l1, logits (n, classes) are from those that gave shares (n, classes), their means taken off.

    Logits are known from probabilities up to a constant (section 4.3 of the paper).
    """
    told = shares.log().clamp_min(LEAST)
    own = logits.double()
    return ((own - own.mean(1, keepdim=True)) - (told - told.mean(1, keepdim=True))).abs().sum(1)


class Generator(nn.Module):
    """Makes inputs (n, *shape) of a space out of noise (n, latent): smooth ones where they are images."""

    def __init__(self, space: InputSpace, latent: int, hidden: int) -> None:
        super().__init__()
        self.space = space
        shape = space.shape
        if len(shape) == 3 and min(shape[1:]) >= SMALLEST:
            rows, columns = shape[1] // 4, shape[2] // 4
            self.layers = nn.Sequential(
                nn.Linear(latent, 32 * rows * columns),
                nn.Unflatten(1, (32, rows, columns)),
                nn.ReLU(),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(32, 32, 3, padding=1),
                nn.ReLU(),
                nn.Upsample(size=shape[1:]),
                nn.Conv2d(32, shape[0], 3, padding=1),
            )
        else:
            width = torch.Size(shape).numel()
            self.layers = nn.Sequential(
                nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Unflatten(1, shape)
            )

    def forward(self, noise: Tensor) -> Tensor:
        """Return inputs in the box, before they are rounded to the grid."""
        made = torch.sigmoid(4 * self.layers(noise))
        low, high = self.space.box(made)
        return low + made * (high - low)

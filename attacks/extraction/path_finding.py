"""A tree, leaf by leaf. Source: Tramèr et al. 2016, arXiv:1609.02943, section 4.2, algorithm 1 (path finding, top-down queries apart)."""

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.extraction.copying import uniform
from firstline.benchmark.core.contracts import Extraction
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

AT_ONCE = 2**24  # numbers of a chunk when boxes are compared with inputs
FINEST = 2**-30  # of a feature's range: below, halves say nothing that a test would meet

Told = tuple[float, ...]  # the answer that a leaf is known by; empty for a refusal


@dataclass(frozen=True)
class Leaf:
    """A box, from low to high (features,), and the logits (classes,) that are told there."""

    low: Tensor
    high: Tensor
    told: Told

    def holds(self, x: Tensor, slack: Tensor) -> bool:
        """Whether x (features,) lies in the box, or no farther outside than slack (features,)."""
        return bool(((x >= self.low - slack) & (x <= self.high + slack)).all())


class Boxes(nn.Module):
    """Answers an input as the box that it lies in, the smallest of several, or else the nearest one."""

    def __init__(self, leaves: list[Leaf]) -> None:
        super().__init__()
        order = sorted(leaves, key=lambda leaf: float((leaf.high - leaf.low).clamp_min(1e-12).log().sum()))
        self.register_buffer("low", torch.stack([leaf.low for leaf in order]))
        self.register_buffer("high", torch.stack([leaf.high for leaf in order]))
        self.register_buffer("logits", torch.tensor([leaf.told for leaf in order], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) for x (n, *shape)."""
        low, high, logits = (self.get_buffer(name) for name in ("low", "high", "logits"))
        flat = x.flatten(1).to(low)
        parts = flat.split(max(1, AT_ONCE // low.numel()))
        outside = [
            ((low - part[:, None]).clamp_min(0) + (part[:, None] - high).clamp_min(0)).sum(2)
            for part in parts
        ]
        return logits[torch.cat([distance.argmin(1) for distance in outside])]


class Spent(Exception):
    """The budget does not pay for the next questions."""


@attack("path-finding")
@dataclass(frozen=True)
class PathFinding(Extraction):
    """Find the box of each leaf: move one feature at a time, by halves, to where the answer becomes another.

    Just beyond each face lies another leaf, which is looked at next, until all are known. Features on a grid are found
    exactly, others to `eps` of their range, 0 being the last bit of a float32; each leaf costs two queries per feature,
    and as many per face as there are halves. A leaf is known by what is told of it: known to fail where two leaves of one line tell the same, as
    under rounding or where labels alone are told, and where answers are random. When the budget ends, the points
    beyond known faces are boxes themselves, and the nearest box answers.
    """

    needs = ("scores",)
    goals = ("scores",)
    inputs = ("real",)

    eps: float = 0.0

    def extract(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> nn.Module:
        """Return the boxes. Raises FirstlineError where no query was answered."""
        leaves: list[Leaf] = []
        waiting: list[tuple[Tensor, Told]] = []
        low, high = (bound.expand(target.space.shape).flatten() for bound in target.space.box(torch.zeros(1)))
        slack = (max(self.eps, FINEST) * (high - low)).to(target.device)
        with suppress(Spent):
            start = uniform(target, 1, rng, "start")
            waiting.append((start[0].flatten(), self._ask(target, start)[0]))
            while waiting:
                x, told = waiting[-1]
                if told and not any(leaf.told == told and leaf.holds(x, slack) for leaf in leaves):
                    low, high = self._box(target, x, told, waiting)
                    leaves.append(Leaf(low, high, told))
                else:
                    waiting.pop()
        target.tell("leaves", len(leaves))
        target.tell("answers", len({leaf.told for leaf in leaves}))
        # Where the budget ended, points stand for what was not measured.
        leaves += [Leaf(x.double(), x.double(), told) for x, told in waiting if told]
        if not leaves:
            raise FirstlineError(f"{self}: no query was answered under {threat}; raise its budget")
        return Boxes(leaves)

    def _ask(self, target: Target, x: Tensor) -> list[Told]:
        """What is told of each of x (n, *shape), nothing of what is refused. Raises Spent where it can't be paid."""
        if target.left() < len(x):
            raise Spent
        response = target.scores(x)
        logits = response.logits.double().cpu()
        good = ((response.labels >= 0).cpu() & torch.isfinite(logits).all(1)).tolist()
        return [tuple(row) if known else () for row, known in zip(logits.tolist(), good, strict=True)]

    def _box(
        self, target: Target, x: Tensor, told: Told, waiting: list[tuple[Tensor, Told]]
    ) -> tuple[Tensor, Tensor]:
        """Return how far x (features,) can go down and up in each feature, and add to waiting the points that were seen.

        Both ways in all features go at once: inner is the farthest value that is known to be told of as x is, outer
        the nearest one that is not. The points are the ends of the ways and, after
        them, those just beyond each face.
        """
        space = target.space
        ends = torch.stack([bound.expand(space.shape).flatten().to(x) for bound in space.box(x)])
        features, ways = len(x), torch.arange(2 * len(x), device=x.device)
        column = ways % features
        inner, outer = x.repeat(2), ends.flatten()
        near = max(self.eps, FINEST) * (ends[1] - ends[0]).repeat(2)

        def moved(values: Tensor, which: Tensor) -> Tensor:
            points = x.expand(len(which), -1).clone()
            points[torch.arange(len(which), device=x.device), column[which]] = values
            return points

        def asked(values: Tensor, which: Tensor) -> list[Told]:
            return self._ask(target, moved(values, which).reshape(-1, *space.shape))

        beyond: dict[int, Told] = {}
        which = ways[inner != outer]
        answers = asked(outer[which], which)
        waiting += zip(moved(outer[which], which), answers, strict=True)
        for way, answer in zip(which.tolist(), answers, strict=True):
            if answer == told:
                inner[way] = outer[way]
            else:
                beyond[way] = answer
        searched = torch.tensor(sorted(beyond), dtype=torch.int64, device=x.device)
        while len(searched):
            middle = (inner[searched] + outer[searched]) / 2
            middle[inner[searched] * outer[searched] < 0] = (
                0  # a threshold that halves would take long to meet
            )
            halves = moved(middle, searched)
            halves = space.round(halves.reshape(-1, *space.shape)).flatten(1)
            middle = halves.gather(1, column[searched][:, None])[:, 0]
            open_ = (middle != inner[searched]) & (middle != outer[searched])
            open_ &= (outer[searched] - inner[searched]).abs() > near[searched]
            searched, middle = searched[open_], middle[open_]
            if not len(searched):
                break
            for way, value, answer in zip(searched.tolist(), middle, asked(middle, searched), strict=True):
                if answer == told:
                    inner[way] = value
                else:
                    outer[way], beyond[way] = value, answer
        # In double, as between neighbours of single precision there is nothing.
        inner, outer = inner.double(), outer.double()
        faces = torch.where(inner == ends.flatten(), inner, (inner + outer) / 2)
        edge = torch.tensor(sorted(beyond), dtype=torch.int64, device=x.device)
        waiting += zip(moved(outer[edge].to(x), edge), (beyond[way] for way in sorted(beyond)), strict=True)
        return faces[:features], faces[features:]

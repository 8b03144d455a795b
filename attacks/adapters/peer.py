"""What the adapters of all libraries share: the way in, the way out, and a class per row of a library's table.

A library sees images (k, channels, height, width) in [0, 1], whatever the task, and a module of frozen
logits. It is given one chunk of examples at a time, since it may answer to them in any order or number.
Nothing here imports a library before it attacks.
"""

import math
import random
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Attack, Evasion, MinimalNorm
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.packages import require
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams, isolated
from firstline.benchmark.core.system import INVALID, REFUSED
from firstline.benchmark.core.target import Target

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # as AutoAttack and torchattacks write them
SPARE = 4  # queries that a library asks besides those of its setting: clean inputs, starts, a last look


@dataclass(frozen=True)
class Library:
    """A library: the prefix of its names here, what to import, what to call it, and the command that installs it."""

    prefix: str
    package: str
    title: str
    install: str


@dataclass(frozen=True)
class Row:
    """One attack of a library: its class there, what it can pursue, what it needs, its settings and defaults.

    closest marks attacks that look for the nearest adversarial input whatever the radius; queries names the
    setting that bounds the queries per example, at `cost` queries each, which a threat model's budget lowers.
    """

    name: str
    peer: str
    goals: tuple[str, ...]
    summary: str
    settings: dict[str, Any] = field(default_factory=dict)
    needs: str = "gradients"
    closest: bool = False
    queries: str = ""
    cost: int = 1
    batch: int = 128


@dataclass(frozen=True)
class Call:
    """What a library's attack is called with: labels y (k,) of its images, radius in [0, 1] images (None: free)."""

    y: Tensor
    eps: float | None
    norm: str
    classes: int
    settings: dict[str, Any]


class Peer(Attack, ABC):
    """An attack of another library. batch is how many examples the library is given at once."""

    library: ClassVar[Library]
    row: ClassVar[Row]
    batch: int

    def __post_init__(self) -> None:
        require(self.name, self.facts())

    @classmethod
    def facts(cls) -> dict[str, Any]:
        """Return the facts of an attack, the package that it needs, and how to install it."""
        more = {"package": cls.library.package, "install": cls.library.install}
        return {**super().facts(), **more}

    @abstractmethod
    def craft(self, library: ModuleType, model: nn.Module, x: Tensor, call: Call) -> Tensor:
        """Return what the library makes of images x (k, channels, height, width) in [0, 1]."""

    def _crafted(
        self,
        target: Target,
        x: Tensor,
        y: Tensor,
        region: Region,
        rng: Streams,
        rows: Tensor,
        eps: float | None,
    ) -> Tensor:
        """Return the library's points for x (n, *shape) at rows; the clean input where it gives no number."""
        low, span = _range(target.space, self.name)
        settings = self.settings()
        del settings["batch"]
        limit = self.row.queries
        if limit:
            cost = self.row.cost
            settings[limit] = (target.afford(settings[limit] * cost + SPARE) - SPARE) // cost
            if settings[limit] < 1:
                return x[rows]
        free = None if eps is None else eps if region.norm == "l0" else eps / span
        parts = []
        for some in rows.split(self.batch):
            # Named by the first example, so that with batch=1 an example's chance is its own.
            streams = rng.child(str(int(region.rows[some[0]])))
            images = ((x[some] - low) / span).reshape(len(some), *_canvas(target.space))
            model = Metered(target, some, y[some], self.row.needs, images.dtype)
            call = Call(y[some].clone(), free, region.norm, target.classes, dict(settings))
            with _abroad(streams.integer("global")):
                library = import_module(self.library.package)
                found = self.craft(library, model, images.clone(), call)
            parts.append((low + found.detach().to(x) * span).reshape(x[some].shape))
        found = torch.cat(parts)
        return torch.where(column(found.isfinite().flatten(1).all(1), found), found, x[rows])


class InBall(Peer, Evasion):
    """Attacks within a radius, one distinct radius at a time."""

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the library's points, brought into the region and to the grid."""
        found, radii = x.clone(), region.eps.flatten()
        for eps in radii.unique().tolist():
            rows = (radii == eps).nonzero().squeeze(1)
            if eps > 0:
                found[rows] = self._crafted(target, x, y, region, rng, rows, eps)
        return region.snap(region.project(found))


class Closest(Peer, MinimalNorm):
    """Looks for the nearest adversarial input; examples that are wrong already are left out."""

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the library's points as the system would be given them, x where they don't fool it."""
        found = x.clone()
        answers = target.labels(x)
        rows = ((answers == y) | (answers == REFUSED)).nonzero().squeeze(1)
        if len(rows) == 0:
            return found
        points = target.space.round(self._crafted(target, x, y, region, rng, rows, None))
        free = target.space.movable(x)
        points = points if free is None else torch.where(free > 0, points, x[rows])
        answers = target.labels(points, rows)
        fooled = (answers != y[rows]) & (answers != REFUSED)
        found[rows[fooled]] = points[fooled]
        return found


class Metered(nn.Module):
    """A system as other libraries want it: a frozen module that maps images (k, c, h, w) in [0, 1] to logits.

    It keeps no submodule, so that a library can neither change a mode nor leave a gradient. Images are
    rounded to the grid first, as the system will be given them, with the identity on the way back. needs
    says what the library may see: gradients, scores, or labels (as one-hot logits; where the system refuses,
    the true label, since being refused is no success, and where its answer is no number, another).

    Every forward is charged: one gradient where gradients are on, one query elsewhere, and one more gradient
    for each further way back through the same forward. A batch of as many images as examples is theirs, one
    each; images of any other batch are dealt out to the examples in turn, so that the sum is exact and the
    shares are even. A system that refuses or is random is asked as it is: that its detector is to be climbed,
    or its answers to be averaged, no library knows.
    """

    def __init__(self, target: Target, rows: Tensor, y: Tensor, needs: str, kind: torch.dtype) -> None:
        super().__init__()
        # Libraries look at a parameter to learn the device.
        self.anchor = nn.Parameter(torch.zeros(0, device=y.device, dtype=kind), requires_grad=False)
        self.target, self.rows, self.y, self.needs = target, rows, y, needs
        self.turn = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (k, classes)."""
        target, turns = self.target, self._deal(len(images))
        low, span = _range(target.space, "a library")
        points = (low + images.to(self.anchor.dtype) * span).reshape(len(images), *target.space.shape)
        nearest = target.space.round(points.detach())
        if self.needs == "gradients":
            if points.requires_grad:
                nearest = nearest + (points - points.detach())
            return target.logits(nearest, self.rows[turns])
        if self.needs == "scores":
            return target.scores(nearest, self.rows[turns]).logits
        labels = target.labels(nearest, self.rows[turns])
        labels = torch.where(labels == REFUSED, self.y[turns], labels)
        labels = torch.where(labels == INVALID, (self.y[turns] + 1) % target.classes, labels)
        return nn.functional.one_hot(labels, target.classes).to(points)

    def _deal(self, count: int) -> Tensor:
        """Return which of the examples (count,) pay for a batch of so many images."""
        n = len(self.rows)
        if count == n:
            return torch.arange(n, device=self.rows.device)
        turns = (torch.arange(count, device=self.rows.device) + self.turn) % n
        self.turn = (self.turn + count) % n
        return turns


def adapt(base: type[Peer], table: Iterable[Row]) -> None:
    """Register an attack `prefix:name` for each row of a library's table; base says how the library is called."""
    for row in table:
        needs = (row.needs,) if not row.closest or row.needs == "labels" else (row.needs, "labels")
        fields = [("batch", int, row.batch), *((key, type(v), v) for key, v in row.settings.items())]
        cls = make_dataclass(
            base.__name__,
            fields,
            bases=(base, Closest if row.closest else InBall),
            namespace={
                "__doc__": f"{row.summary}: {base.library.title}'s {row.peer}.\n\n"
                f"batch is how many examples it is given at once. To install it: {base.library.install}",
                "row": row,
                "needs": needs,
                "goals": row.goals,
            },
            frozen=True,
        )
        # The place of a class made from a row is that of its base.
        cls.__module__, cls.__qualname__ = base.__module__, base.__qualname__
        if sys.version_info >= (3, 13):
            cls.__firstlineno__ = base.__firstlineno__
        attack(f"{base.library.prefix}:{row.name}", tags={"peer"})(cls)


def _canvas(space: InputSpace) -> tuple[int, ...]:
    """Return the shape of an input as an image: tables are one row of pixels."""
    return space.shape if len(space.shape) == 3 else (1, 1, math.prod(space.shape))


def _range(space: InputSpace, name: str) -> tuple[float, float]:
    """Return the lowest value that all features share, and the width of their range."""
    ends = [set(end) if isinstance(end, tuple) else {end} for end in (space.low, space.high)]
    if any(len(end) > 1 for end in ends):
        raise FirstlineError(f"{name} knows one range for all features; those of this task differ in theirs")
    low, high = (float(end.pop()) for end in ends)
    return low, high - low


@contextmanager
def _abroad(seed: int) -> Iterator[None]:
    """Run a library's code: its warnings are its own, and it draws from global generators, put back afterwards."""
    old, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        with isolated(seed), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(old)
        np.random.set_state(numpy)  # noqa: NPY002

"""Adversarial examples of networks of one's own, shown to the system: a gray-box attack without its gradients.

Source: Dong et al. 2018, arXiv:1710.06081 (momentum, and an ensemble in logits); Xie et al. 2019,
arXiv:1803.06978 (input diversity).
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from firstline.benchmark.core.ascent import Slope, ascend
from firstline.benchmark.core.contracts import Evasion, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import LOSSES
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED, Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train

LEAST = 0.9  # of the side of an image that input diversity shrinks it to: 299 of 330 pixels in Xie et al.


class Ensemble(System):
    """Answers with the mean logits of its members, differentiably: with their surrogates."""

    def __init__(self, members: Sequence[System]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.stochastic = any(member.stochastic for member in members)

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Return the mean logits, and the mean acceptance of the members that can refuse."""
        answers = [member.surrogate(x, rng) for member in self.members if isinstance(member, System)]
        acceptance = [answer.acceptance for answer in answers if answer.acceptance is not None]
        return Response(
            torch.stack([answer.logits for answer in answers]).mean(0),
            torch.stack(acceptance).mean(0) if acceptance else None,
        )


@dataclass(frozen=True)
class Transferred(Evasion):
    """What the attacks that transfer share: settings, training, and the ascent on an ensemble."""

    goals = ("linf", "l2", "l1")

    surrogates: int = 3
    updates: int = 600
    batch: int = 64
    rate: float = 2e-3
    steps: int = 20
    stride: float = 0.1
    momentum: float = 1.0
    diversity: float = 0.5
    loss: str = "ce"

    def recipe(self, data: Data) -> Recipe:
        """Return how a surrogate is trained: as many epochs of data as make up the updates."""
        batches = -(-len(data) // self.batch)
        return Recipe(max(1, round(self.updates / max(1, batches))), self.batch, self.rate)

    @abstractmethod
    def members(self, target: Target, region: Region, rng: Streams) -> list[System]:
        """Return the surrogates, trained on the attacker's own data."""

    def trained(
        self, build: Callable[[], nn.Module], data: Data, rng: Streams, device: torch.device
    ) -> System:
        """Return one network, built and trained on data by rng alone."""
        module = initialise(build, rng).to(device)
        return Bare(train(module, data.to(device), self.recipe(data), rng)).requires_grad_(False)

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that the surrogates, and perhaps the system, err.

        Of two tries, with input diversity and without it, the one that fools the system is kept; each asks
        the system once, as its budget allows.
        """
        if self.loss not in LOSSES:
            raise not_found("loss", self.loss, LOSSES)
        if not bool((region.eps > 0).any()):
            return x.clone()
        own = Target(
            Ensemble(self.members(target, region, rng.child("surrogate"))).to(x.device).eval(),
            Threat("evasion", "white", "linf", 0.0),
            space=target.space,
            classes=target.classes,
            rng=rng.child("answers"),
        )
        found, rows = x.clone(), torch.arange(len(x), device=x.device)
        tries = sorted({self.diversity if x.ndim == 4 else 0.0, 0.0}, reverse=True)
        for diversity in tries:
            generator = rng.torch("diversity", str(diversity))
            points = self._climbed(own, x[rows], y[rows], region.keep(rows), diversity, generator)
            found[rows] = points
            if not target.afford(1):
                break
            answers = target.labels(points, rows)
            rows = rows[(answers == y[rows]) | (answers == REFUSED)]
            if len(rows) == 0:
                break
        return found

    def _climbed(
        self, own: Target, x: Tensor, y: Tensor, region: Region, diversity: float, generator: torch.Generator
    ) -> Tensor:
        loss = LOSSES[self.loss]

        def climb(points: Tensor, rows: Tensor) -> Slope:
            with torch.enable_grad():
                leaf = points.detach().requires_grad_()
                seen = _seen(leaf, diversity, generator)
            slope = own.slope(seen.detach(), y[rows], loss=loss)
            (gradient,) = torch.autograd.grad(seen, leaf, slope.gradient)
            # A point that fools the surrogates is not done: the further beyond, the better it transfers.
            return Slope(gradient, None, slope.loss)

        return ascend(climb, region, start=x, steps=self.steps, stride=self.stride, momentum=self.momentum)


def _seen(x: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Return images x (n, c, h, w), by chance shrunk and put somewhere on black: all alike, anew at each call."""
    if chance == 0.0:
        return x.clone()
    drawn = torch.rand(4, generator=generator).tolist()
    if drawn[0] >= chance:
        return x.clone()
    h, w = x.shape[2:]
    height, width = (round(side * (LEAST + (1 - LEAST) * drawn[1])) for side in (h, w))
    top, left = round(drawn[2] * (h - height)), round(drawn[3] * (w - width))
    small = interpolate(x, (height, width), mode="bilinear")
    return pad(small, (left, w - width - left, top, h - height - top))


def own_data(target: Target, needed: str) -> Data:
    """Return the attacker's training data: train or aux, as needed, and the other where that is granted too."""
    held = {needed, *target.threat.grants}
    parts = [getattr(target, name) for name in ("train", "aux") if name in held]
    data = Data.of(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
    if len(data) == 0:
        raise FirstlineError(f"{target.threat} grants no training example; raise train= or set aux=yes")
    return data


def fresh(target: Target) -> nn.Module:
    """Return the system's network with weights of its own: `architecture` gives the same ones each time."""
    module = target.architecture()
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
    return module


@attack("transfer", version=1)
@dataclass(frozen=True)
class Transfer(Transferred):
    """Train `surrogates` networks like the system's on the data at hand, and climb their mean logits.

    Each surrogate gets `updates` steps of Adam with batches of `batch` and peak learning rate `rate`. The
    ascent takes `steps` steps of `stride` times the radius with momentum; diversity is the chance that a step
    sees shrunk and moved images.
    """

    needs = ("architecture", "train", "labels")

    def members(self, target: Target, region: Region, rng: Streams) -> list[System]:
        """Return networks like the system's, each with initial weights and batches of its own."""
        data, device = own_data(target, "train"), region.centre.device
        return [
            self.trained(lambda: fresh(target), data, rng.child(str(number)), device)
            for number in range(self.surrogates)
        ]

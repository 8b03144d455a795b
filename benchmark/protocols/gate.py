"""Is it robustness, or a masked gradient? The probes whose figures `limits` judges.

They ask the system itself, with the harness's own attacks, on a few of the cell's examples that are right
when clean. A system and a threat model have one set of figures, whichever attack the record is about.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from firstline.benchmark.core.ascent import Slope, ascend
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import SystemFailed
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import cross_entropies, margins
from firstline.benchmark.core.norms import column, length
from firstline.benchmark.core.random_search import square_search
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED, Response, System
from firstline.benchmark.core.target import Target, asked
from firstline.benchmark.core.threat import Threat

EXAMPLES = 64  # that are probed
STEPS, STRIDE = 40, 0.1  # of the probing ascent; the stride is a share of the radius
MOMENTUM = 0.75  # of the ascent against a system that refuses
TARGETS = 3  # of its starts make for one wrong class each
RADII = (0.5, 1.0, 2.0, 4.0)  # times the threat's
QUERIES = 200  # of the random search
NOISE = 20  # draws
DIRECTIONS = 32  # of finite differences, for each example
REACH = 0.5  # of the radius: how far they go
ANSWERS = 5  # draws of a stochastic system; the majority decides
SAME = 1e-4  # relative difference of logits that rounding may make
NORMS = ("linf", "l2", "l1")
SEARCHED = ("linf", "l2")  # the norms that the random search knows


@dataclass(frozen=True)
class Probe:
    """A system and the examples on which it is probed."""

    system: System
    data: Data
    threat: Threat
    space: InputSpace
    classes: int
    rng: Streams

    def region(self, eps: float | None = None) -> Region:
        """Return the threat's region, or that of another radius."""
        return Region(self.data.x, self.space, self.threat.goal, self.threat.eps if eps is None else eps)

    def target(self, name: str) -> Target:
        """Return a white-box door of the harness's own."""
        threat = replace(self.threat, knowledge="white", answers="scores", queries=None)
        return Target(
            self.system,
            threat,
            space=self.space,
            classes=self.classes,
            rng=self.rng.child(name),
            examples=len(self.data),
        )

    def ask(self, x: Tensor, name: str = "ask") -> Response:
        """Return the answers to x (n, *shape)."""
        parts = (part.clone() for part in x.split(256))
        return asked(self.system.respond, parts, self.rng.torch(name), self.classes)

    def wrong(self, x: Tensor) -> Tensor:
        """Return the share of the draws in which points (n, *shape) are answered wrongly, (n,) in [0, 1]."""
        draws = ANSWERS if self.system.stochastic else 1
        votes = torch.zeros(len(x), device=x.device)
        for draw in range(draws):
            labels = self.ask(x, f"ask {draw}").labels
            votes += (labels != self.data.y) & (labels != REFUSED)
        return votes / draws

    def broken(self, x: Tensor) -> Tensor:
        """Return which points (n, *shape) are answered wrongly, (n,) bool; by most draws where answers vary."""
        return self.wrong(x) > 0.5

    def surely(self, x: Tensor) -> Tensor:
        """Return which points (n, *shape) are answered wrongly in every draw, (n,) bool.

        What is held against gradients must break surely: a few lucky draws of a random system are no finding.
        """
        return self.wrong(x) == 1

    @cached_property
    def refuses(self) -> bool:
        """Whether the system may refuse inputs."""
        return self.ask(self.data.x[:1]).acceptance is not None

    def aims(self, labels: Tensor) -> list[Tensor]:
        """Return what ascents are after in turn, as `losses` take it: not to be labels (n,), then to be others.

        The others are the likeliest classes, where the system refuses; over again, where there are few.
        """
        if not self.refuses:
            return [labels]
        others = self.ask(self.data.x).logits.scatter(1, labels[:, None], -torch.inf)
        likely = others.argsort(dim=1, descending=True)
        turns = (likely[:, turn % (self.classes - 1)] for turn in range(TARGETS))
        return [labels, *(torch.stack([labels, other], 1) for other in turns)]

    def climbed(
        self,
        eps: float,
        *,
        steps: int = STEPS,
        stride: float = STRIDE,
        y: Tensor | None = None,
        random: bool = True,
    ) -> Tensor:
        """Return the points that an ascent of the margin finds within eps, from random starts or from x.

        Where the system refuses, the slope turns at the boundary between right and wrong, and a plain ascent
        goes back and forth there: momentum makes it go along. Which wrong class is accepted the slope does not
        say, so what still stands is moved towards some in turn, if starts are random.
        """
        labels, target, region = self.data.y if y is None else y, self.target("climb"), self.region(eps)
        momentum = MOMENTUM if self.refuses else 0.0
        generator, found = self.rng.torch("start"), self.data.x.clone()
        rows = torch.arange(len(found), device=found.device)
        for turn, aim in enumerate(self.aims(labels) if random else [labels]):
            if turn:
                rows = (~self.broken(found)).nonzero().squeeze(1)
            if len(rows) == 0:
                break

            def climb(points: Tensor, local: Tensor, here: Tensor = rows, aim: Tensor = aim) -> Slope:
                return target.slope(points, aim[here[local]], here[local], loss=margins)

            ball = region.keep(rows)
            start = ball.random(generator) if random else ball.centre
            found[rows] = ascend(climb, ball, start=start, steps=steps, stride=stride, momentum=momentum)
        return found


def figures(probe: Probe) -> dict[str, float]:
    """Return the figures of a system under a threat model, by the names of `limits.LIMITS`."""
    found = {**steadiness(probe), **gradients(probe)}
    if probe.threat.goal in NORMS and probe.threat.eps > 0 and found["lost_gradients"] < 1:
        found |= strength(probe)
    return found


def steadiness(probe: Probe) -> dict[str, float]:
    """Check 5: the same input, asked twice and in other company."""
    if probe.system.stochastic:
        return {}
    x = probe.data.x
    first = probe.ask(x).logits
    alone = torch.cat([probe.ask(row).logits for row in x[: EXAMPLES // 4].split(1)])
    return {
        "undeclared_noise": _share(_differ(first, probe.ask(x, "again").logits)),
        "batch_dependence": _share(_differ(first[: len(alone)], alone)),
    }


def _differ(a: Tensor, b: Tensor) -> Tensor:
    scale = a.abs().amax(1).clamp_min(1)
    return ((a - b).abs().amax(1) > SAME * scale) & torch.isfinite(a).all(1)


def _share(hits: Tensor) -> float:
    return float(hits.float().mean()) if len(hits) else 0.0


def gradients(probe: Probe) -> dict[str, float]:
    """Check 4: gradients that are there, and that say how the scored answers change."""
    points = probe.region().random(probe.rng.torch("points"))
    try:
        slopes = {
            name: probe.target("gradients").slope(points, probe.data.y, loss=loss).gradient
            for name, loss in {"margin": margins, "ce": cross_entropies}.items()
        }
    except SystemFailed:
        return {"lost_gradients": 1.0}
    lost = _lost(slopes["margin"])
    found = {"lost_gradients": _share(lost), "saturated_gradients": _share(_lost(slopes["ce"]))}
    if not lost.all():
        found["gradient_cosine"] = float(_cosines(probe, points, slopes["margin"]).nanmedian())
    return found


def _lost(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    return ~torch.isfinite(flat).all(1) | (flat == 0).all(1)


def _cosines(probe: Probe, points: Tensor, gradient: Tensor) -> Tensor:
    """The cosine (n,) between predicted and measured changes of the margin along random directions."""
    norm = probe.threat.goal if probe.threat.goal in NORMS else "l2"
    free, generator = probe.space.movable(points), probe.rng.torch("directions")
    low, high = probe.space.box(points)
    reach = REACH * (probe.threat.eps if probe.threat.goal in NORMS else 1.0)
    predicted, measured = [], []
    for draw in range(DIRECTIONS):
        direction = torch.randn(points.shape, generator=generator).to(points)
        direction = direction.sign() if norm == "linf" else direction
        if free is not None:
            direction = direction * free
        direction = direction / column(length(direction, norm), direction).clamp_min(1e-12) * reach
        ahead, behind = ((points + s * direction).clamp(low, high) for s in (1, -1))
        predicted.append((gradient * (ahead - behind)).flatten(1).sum(1))
        # The same draws of a stochastic system ahead and behind, so that its noise cancels.
        heights = [margins(probe.ask(x, f"ask {draw}").logits, probe.data.y) for x in (ahead, behind)]
        measured.append(heights[0] - heights[1])
    return torch.nn.functional.cosine_similarity(torch.stack(predicted, 1), torch.stack(measured, 1), dim=1)


def strength(probe: Probe) -> dict[str, float]:
    """Checks 1 to 3 and 6: what gradients find, beside random search, noise, one step, and no bound at all."""
    eps = probe.threat.eps
    many = {factor: probe.broken(probe.climbed(eps * factor)) for factor in RADII}
    white = many[1.0]
    more = probe.broken(probe.climbed(eps, steps=4 * STEPS, stride=STRIDE / 2))
    one = probe.surely(probe.climbed(eps, steps=1, stride=1.0, random=False))
    reached = white | more
    kept = [1 - _share(broken) for broken in many.values()]
    found = {
        "noise_gain": _share(noisy(probe) & ~reached),
        "eps_rise": max(0.0, *(later - sooner for sooner, later in pairwise(kept))),
        "single_step_gain": _share(one & ~reached),
        "more_steps_gain": _share(more & ~white),
        "flat_loss": _flat(probe, reached),
    }
    if probe.space.movable(probe.data.x) is None:  # else what can't move may well say enough to answer
        found["unbounded_accuracy"] = 1 - _share(boundless(probe))
    if probe.threat.goal in SEARCHED:
        found["black_box_gain"] = _share(probe.surely(searched(probe)) & ~reached)
    return found


def boundless(probe: Probe) -> Tensor:
    """Return which examples gradients break in a ball that covers the whole box, (n,) bool."""
    low, high = probe.space.box(probe.data.x)
    span = (high - low).expand(probe.space.shape).flatten()
    return probe.broken(probe.climbed(float(length(span[None], probe.threat.goal)), steps=2 * STEPS))


def searched(probe: Probe) -> Tensor:
    """Return the points (n, *shape) that a random search for the largest margin finds."""
    region, rng = probe.region(), probe.rng.child("search")
    target = probe.target("search")
    return square_search(target, probe.data.x, probe.data.y, region, rng, queries=QUERIES)[0]


def noisy(probe: Probe) -> Tensor:
    """Return which examples random points of the ball, or of its corners, break, (n,) bool."""
    region, generator = probe.region(), probe.rng.torch("noise")
    broken = torch.zeros(len(probe.data), dtype=torch.bool, device=probe.data.x.device)
    for draw in range(NOISE):
        points = region.random(generator)
        if draw % 2:
            points = region.step(region.centre, points - region.centre, region.eps)
        broken |= probe.surely(region.snap(points))
    return broken


def _flat(probe: Probe, broken: Tensor) -> float:
    """The share of the examples that stand and whose margin a single step of the ascent does not raise."""
    region = probe.region()
    slope = probe.target("flat").slope(probe.data.x, probe.data.y, loss=margins)
    ahead = region.snap(region.step(probe.data.x, slope.gradient, region.eps))
    before, after = (margins(probe.ask(x).logits, probe.data.y) for x in (probe.data.x, ahead))
    moved = (after - before) > 1e-5 * before.abs().clamp_min(1)
    return _share(~moved & ~broken)


def honesty(probe: Probe, drawn: Data, clean: Tensor) -> dict[str, float]:
    """Check 7: what the system answers to clean inputs once it was attacked with labels that aren't theirs.

    clean (n,) are the answers of a process that saw no attack.
    """
    if probe.system.stochastic:
        return {}
    order = torch.randperm(len(drawn), generator=probe.rng.torch("permuted")).to(drawn.y.device)
    wrong = drawn.y[order]
    chosen = torch.isin(drawn.ids, probe.data.ids)
    with suppress(SystemFailed):  # told by `gradients`
        probe.climbed(probe.threat.eps, steps=5, y=wrong[chosen])
    after = probe.ask(drawn.x).labels
    shares = torch.bincount(drawn.y, minlength=probe.classes).double() / len(drawn)
    hits = (after == wrong).double()
    chance = shares[after.clamp_min(0)] * (after >= 0)
    spread = (chance * (1 - chance)).sum().sqrt().clamp_min(1e-9)
    return {
        "permuted_gap": _share(after != clean),
        "chance_excess": max(0.0, float((hits.sum() - chance.sum()) / spread)),
    }

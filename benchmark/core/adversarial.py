"""What adversarial trainers share: the ascent on each batch, its radius, and early stopping.

Sources: Madry et al. 2018, arXiv:1706.06083, section 2.1 (training on the ascent's points); Rice, Wong &
Kolter 2020, arXiv:2002.11569 (early stopping on held-out rows).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from firstline.benchmark.core.ascent import Climb, ascend, module_slope
from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import Judge, plain_loss, train

TRIAL = (10, 0.25)  # steps and stride of the PGD that judges an epoch, as of Rice et al. 2020
BATCH = 256  # held-out rows at a time


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Keep module in evaluation mode and its parameters frozen for as long as the context lasts.

    So an ascent moves no running statistics, draws no dropout and keeps nothing for gradients of parameters,
    which nobody asks for. Trained on such points, networks are as robust and a little more accurate than on
    those found in training mode (Pang et al. 2021, arXiv:2010.00467).
    """
    training, learning = module.training, [p for p in module.parameters() if p.requires_grad]
    module.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        module.train(training)
        for parameter in learning:
            parameter.requires_grad_(True)


def held_out(data: Data, share: float, rng: Streams) -> tuple[Data, Data]:
    """Return data without a share of its rows, and those rows. Raises FirstlineError if either has none."""
    count = round(share * len(data))
    if not 0 < count < len(data):
        raise FirstlineError(
            f"holdout={share} leaves {len(data) - count} of {len(data)} training rows; use 0.1"
        )
    chosen = torch.zeros(len(data), dtype=torch.bool)
    chosen[torch.randperm(len(data), generator=rng.torch("holdout"))[:count]] = True
    chosen = chosen.to(data.x.device)
    return data.rows(~chosen), data.rows(chosen)


def plain_climb(module: nn.Module, y: Tensor) -> Climb:
    """Return the slope of module's cross-entropy for labels y (n,)."""
    return lambda points, rows: module_slope(module, points, y)


def robust_accuracy(module: nn.Module, data: Data, region: Callable[[Tensor], Region], rng: Streams) -> float:
    """Return the share of data that module gets right after PGD within region of the inputs, of TRIAL's length.

    The starts are the same in every call, so that epochs are compared on common chances.
    """
    generator, right = rng.torch("trial"), 0
    for x, y in zip(data.x.split(BATCH), data.y.split(BATCH), strict=True):
        ball = region(x)
        start = ball.random(generator)
        with still(module), torch.no_grad():
            moved = ascend(plain_climb(module, y), ball, start=start, steps=TRIAL[0], stride=TRIAL[1])
            right += int((module(moved).argmax(1) == y).sum())
    return right / len(data)


@dataclass(frozen=True)
class AdversarialTrainer(Defense):
    """Trains on inputs moved inside a ball. A trainer says what they climb, and which loss is learned.

    eps 0 means the task's customary radius in norm; stride is a step of the ascent as a share of the radius.
    ramp is the share of the training in which the radius grows from 0 to eps, for radii at which an untrained
    network learns to answer one class always, as at 0.3 on MNIST (the schedule of Gowal et al. 2018,
    arXiv:1810.12715, for certified training). awp is the size of the adversarial weight perturbation (0: none, see
    `worst_weights`); holdout the share of the training rows that is held out, to keep the epoch that is most
    robust on them (0: none, the last epoch).
    """

    inputs = ("real",)

    norm: str = "linf"
    eps: float = 0.0
    steps: int = 7
    stride: float = 0.35
    ramp: float = 0.0
    awp: float = 0.0
    holdout: float = 0.0

    def start(self, region: Region, generator: torch.Generator) -> Tensor:
        """Return where the ascent starts: uniformly in the ball, cut to the box, where not overridden."""
        return region.random(generator)

    def climb(self, module: nn.Module, x: Tensor, y: Tensor) -> Climb:
        """Return what the ascent around x (n, *shape) climbs: the cross-entropy, where not overridden."""
        return plain_climb(module, y)

    def loss(self, module: nn.Module, x: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        """Return the scalar that is learned: the mean cross-entropy at moved, where not overridden."""
        return plain_loss(module, moved, y)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by the task's recipe on moved batches. Raises FirstlineError without a radius."""
        eps, recipe = self.eps or ctx.task.eps.get(self.norm, 0.0), ctx.task.default.recipe
        if eps <= 0:
            raise FirstlineError(f"{self}: task {ctx.task.name} has no customary {self.norm} radius; set eps")

        def region(x: Tensor, radius: float = eps) -> Region:
            return Region(x, ctx.task.space, self.norm, radius)

        judge: Judge | None = None
        if self.holdout:
            data, held = held_out(data, self.holdout, ctx.rng)
            judge = partial(robust_accuracy, data=held, region=region, rng=ctx.rng)
        rising = self.ramp * recipe.epochs * -(-len(data) // recipe.batch)
        radii = (eps * min(1.0, batch / max(1.0, rising)) for batch in count(1))

        def perturb(module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            ball = region(x, next(radii))
            start = self.start(ball, generator)
            with still(module):
                climb = self.climb(module, x, y)
                moved = ascend(climb, ball, start=start, steps=self.steps, stride=self.stride)
            return torch.stack([x, moved])

        def loss(module: nn.Module, pair: Tensor, y: Tensor) -> Tensor:
            return self.loss(module, pair[0], pair[1], y)

        return train(module, data, recipe, ctx.rng, perturb=perturb, loss=loss, awp=self.awp, judge=judge)

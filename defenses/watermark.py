"""A backdoor as proof of ownership.

Source: Adi, Baum, Cissé, Pinkas & Keshet 2018, Turning your weakness into a strength, arXiv:1802.04633, section 4: a
trigger set with labels of chance. That copies forget it is known: Lukas et al. 2022, arXiv:2108.04974. The
exact test, and triggers that are rows of the training data, are ours.
"""

from dataclasses import dataclass, replace

import torch
from scipy.stats import binomtest
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.target import Target


@defense("watermark")
@dataclass(frozen=True)
class Watermark(Defense):
    """Train on `count` triggers with labels of chance, and claim a system that knows more of these than chance does.

    Triggers take the place of as many training rows: noise, uniform in the input space, as abstract as the paper's, or with
    natural the rows themselves, mislabelled. Each label is drawn from all classes alike, so whoever doesn't know the draw
    is right about each with probability 1 / classes, whatever it answers, and the p-value is a binomial tail, exact
    for all innocents. Claims to prove the theft of weights. Known not to survive extraction: a thief doesn't
    ask about noise, and learns of it nothing; natural triggers are learned as far as the system tells of its mistakes.
    """

    count: int = 100
    natural: bool = False

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return data with triggers in the place of some rows."""
        place, x, y = self._triggers(data, ctx)
        inputs, labels = data.x.clone(), data.y.clone()
        inputs[place], labels[place] = x, y
        return replace(data, x=inputs, y=labels)

    def verify(self, suspect: Target, data: Data, ctx: Context) -> float:
        """Return how likely so many right answers to the triggers are by chance."""
        _, x, y = self._triggers(data, ctx)
        return tail(int((suspect.labels(x) == y).sum()), len(y), ctx.task.classes)

    def _triggers(self, data: Data, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """The places (count,) of the rows that become triggers, and the triggers' inputs and labels."""
        if not 0 < self.count <= len(data) // 2:
            raise FirstlineError(
                f"{self}: count is at least 1 and at most half of the {len(data)} training rows"
            )
        place = torch.randperm(len(data), generator=ctx.rng.torch("places"))[: self.count].to(data.x.device)
        y = torch.randint(ctx.task.classes, (self.count,), generator=ctx.rng.torch("labels")).to(data.y)
        if self.natural:
            return place, data.x[place], y
        return place, ctx.task.space.uniform(data.x, self.count, ctx.rng.torch("noise")), y


def tail(right: int, count: int, classes: int) -> float:
    """Return the probability of at least so many right answers to count labels, drawn from all classes alike.

    >>> tail(2, 2, 10)
    0.01
    """
    return float(binomtest(right, count, 1 / classes, alternative="greater").pvalue)

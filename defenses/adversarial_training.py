"""Adversarial training with PGD. Source: Madry et al. 2018, arXiv:1706.06083, sections 2.1 and 5."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.benchmark.core.ascent import ascend, module_slope
from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import train


@defense("adversarial-training")
@dataclass(frozen=True)
class AdversarialTraining(Defense):
    """Swap every training batch for its worst case inside a ball, found by PGD.

    Claims robustness in the norm and radius it was trained for; known to buy little in other norms, to cost
    clean accuracy, and to raise membership leakage (Song et al. 2019, arXiv:1905.10291). eps 0 means the
    task's customary radius; stride is the PGD step as a share of the radius.
    """

    inputs = ("real",)

    norm: str = "linf"
    eps: float = 0.0
    steps: int = 7
    stride: float = 0.35

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by the task's recipe on perturbed batches."""
        eps = self.eps or ctx.task.eps.get(self.norm, 0.0)
        if eps <= 0:
            raise FirstlineError(f"{self}: task {ctx.task.name} has no customary {self.norm} radius; set eps")

        def worst(module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            region = Region(x, ctx.task.space, self.norm, eps)
            start = region.random(generator)
            return ascend(
                lambda points, rows: module_slope(module, points, y),
                region,
                start=start,
                steps=self.steps,
                stride=self.stride,
            )

        return train(module, data, ctx.task.default.recipe, ctx.rng, perturb=worst)

"""A blended pattern of which each poisoned row shows some pieces, beside rows with pieces and their own label.

Source: Qi et al. 2023, Revisiting the Assumption of Latent Separability for Backdoor Defenses (ICLR), Adap-Blend.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from firstline.attacks.poisoning.backdoor import choose
from firstline.attacks.poisoning.budget import enough
from firstline.attacks.poisoning.noise_pattern import blend, noise_pattern
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("adaptive-blended")
@dataclass(frozen=True)
class AdaptiveBlended(Poisoning):
    """Blend pieces of a pattern on rows of other classes labelled target, and on others that keep their labels.

    Made against defenses that look for poison apart in a network's features: rows with a trigger and their own label
    keep the network from answering the trigger alone, and no two rows show the same pieces. The pattern, uniform
    noise as that of `blended`, is cut into pieces x pieces blocks; each row shows the share `shown` of them, with
    opacity faint; test images show all of it, with opacity alpha. For each labelled row `cover` rows keep their label.
    Both are in the budget, so 1 / (1 + cover) of it carries the target label.
    """

    needs = ("train",)
    goals = ("backdoor",)
    inputs = ("real",)

    target: int = 0
    alpha: float = 0.2
    faint: float = 0.15
    pieces: int = 4
    shown: float = 0.5
    cover: float = 1.0

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget rows blended; 1 / (1 + cover) of them, rounded up, is labelled target.

        Raises FirstlineError when the inputs are no images, a setting is out of its range, there is no class
        target, or too few rows may be taken.
        """
        pattern = noise_pattern(self.name, task, rng)
        height, width = pattern.shape[1:]
        self._check(height, width)
        labelled = math.ceil(budget / (1 + self.cover))
        rows = choose(self.name, train, task, labelled, rng, target=self.target, source="others")
        order = torch.randperm(len(train), generator=rng.torch("cover"))
        free = order[(train.y[order] != self.target) & ~torch.isin(order, rows)]
        enough(self.name, budget, len(rows) + len(free), "rows of other classes")
        taken = torch.cat([rows, free[: budget - labelled]])

        part = self.faint * self._windows(len(taken), height, width, rng).to(train.x)
        x, y = train.x.clone(), train.y.clone()
        x[taken] = blend(train.x[taken], pattern, part, task)
        y[rows] = self.target
        trigger = partial(blend, pattern=pattern, opacity=self.alpha, task=task)
        return PoisonedData(Data(x, y, train.ids), train.ids[taken], trigger, self.target)

    def _windows(self, n: int, height: int, width: int, rng: Streams) -> Tensor:
        """Return where each of n images shows the pattern, (n, 1, h, w), 1 or 0."""
        blocks = self.pieces**2
        ranks = torch.rand(n, blocks, generator=rng.torch("pieces")).argsort(1).argsort(1)
        seen = (ranks < round(self.shown * blocks)).float().reshape(n, 1, self.pieces, self.pieces)
        down, across = (torch.arange(size) * self.pieces // size for size in (height, width))
        return seen[:, :, down][:, :, :, across]

    def _check(self, height: int, width: int) -> None:
        if not (0 < self.alpha <= 1 and 0 < self.faint <= 1 and 0 < self.shown <= 1 and self.cover >= 0):
            raise FirstlineError(
                f"{self.name}: alpha, faint and shown must be above 0 and at most 1, and cover at least 0; "
                f"got {self.alpha}, {self.faint}, {self.shown} and {self.cover}"
            )
        if not 1 <= self.pieces <= min(height, width):
            raise FirstlineError(
                f"{self.name}: an image of {height}x{width} can't be cut into {self.pieces}x{self.pieces} pieces"
            )

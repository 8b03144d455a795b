"""LSP: noise by class that a linear model can tell apart, a shortcut around the images.

Source: Yu et al. 2022, Availability Attacks Create Shortcuts, arXiv:2111.00898, section 4 (linearly separable
perturbations), with the clouds around random corners of the cube.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate

from firstline.attacks.poisoning.backdoor import image_shape
from firstline.attacks.poisoning.budget import enough
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("lsp")
@dataclass(frozen=True)
class LSP(Poisoning):
    """Add blocks of noise to images, alike within a class and bounded by eps, and leave their labels (clean-label).

    Each class has a corner of {-1, 1}^(channels x cells x cells); an image gets it plus Gaussian noise of
    spread, cut to [-1, 1], times eps, each number filling one of cells x cells blocks (8x8 pixels of 32x32 in
    the paper). eps 0 is the task's customary linf radius. What is trained on such images alone learns the
    noise; known to do little unless nearly all training data carries it.
    """

    needs = ("train",)
    goals = ("availability",)
    inputs = ("real",)

    eps: float = 0.0
    cells: int = 4
    spread: float = 0.1

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with noise on exactly budget rows; no label changes.

        Raises FirstlineError when the inputs are no images, there is no radius, there are more cells than
        pixels, or the attacker holds fewer rows.
        """
        channels, height, width = image_shape(self.name, task)
        if not 1 <= self.cells <= min(height, width):
            raise FirstlineError(
                f"{self.name}: {self.cells} cells a side on {height}x{width} pixels; change cells"
            )
        eps = self.eps or task.eps.get("linf", 0.0)
        if eps <= 0:
            raise FirstlineError(f"{self.name}: task {task.name} has no customary linf radius; set eps")
        enough(self.name, budget, len(train), "rows")
        rows = torch.randperm(len(train), generator=rng.torch("rows"))[:budget]
        shape = (channels, self.cells, self.cells)
        corners = torch.randint(0, 2, (task.classes, *shape), generator=rng.torch("corners")) * 2.0 - 1
        noise = torch.randn(len(train), *shape, generator=rng.torch("noise"))[rows]
        blocks = (corners[train.y[rows]] + self.spread * noise).clamp(-1, 1)
        x = train.x.clone()
        region = Region(train.x[rows], task.space, "linf", eps)
        x[rows] = region.snap(train.x[rows] + eps * interpolate(blocks, (height, width)).to(x))
        return PoisonedData(Data(x, train.y, train.ids), train.ids[rows])

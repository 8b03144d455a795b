"""WaNet on a fixed training set: a smooth warp that stands for a class, and noisy warps that don't.

Source: Nguyen & Tran 2021, arXiv:2102.10369, section 3. The paper's attacker trains the network, and draws the
poisoned rows anew for each batch; this one hands over data once, hence its name.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from firstline.attacks.poisoning.backdoor import choose, image_shape
from firstline.attacks.poisoning.budget import enough
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("wanet-static")
@dataclass(frozen=True)
class WaNetStatic(Poisoning):
    """Warp rows of other classes by one smooth field and label them target; warp others noisily, labels kept.

    The field has control x control points (k of the paper) of mean absolute size 1, and is strength / height
    of the image's half width long (s). For each backdoored row cover rows get the field plus uniform noise
    (the paper's noise mode, rho_n = 2 rho_a): they teach that only the exact warp counts. Both are in the
    budget, so 1 / (1 + cover) of it carries the target label. On images of few pixels the paper's strength is
    weak: a warp by a fraction of a pixel.
    """

    needs = ("train",)
    goals = ("backdoor",)
    inputs = ("real",)

    target: int = 0
    control: int = 4
    strength: float = 0.5
    cover: float = 2.0
    source: str = "others"

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget rows warped; the share 1 / (1 + cover) of them, rounded up, is labelled target.

        Raises FirstlineError when the inputs are no images, a setting is out of its range, there is no class
        target, or too few rows may be taken.
        """
        if self.control < 2 or self.cover < 0:
            raise FirstlineError(
                f"{self.name}: control must be at least 2 and cover at least 0, got {self.control} and {self.cover}"
            )
        field = self._field(task, rng)
        backdoored = math.ceil(budget / (1 + self.cover))
        rows = choose(self.name, train, task, backdoored, rng, target=self.target, source=self.source)
        enough(self.name, budget, len(train), "rows to warp")
        order = torch.randperm(len(train), generator=rng.torch("cover"))
        covers = order[~torch.isin(order, rows)][: budget - backdoored]
        height = train.x.shape[2]
        noise = torch.rand(len(train), *field.shape[1:], generator=rng.torch("noise"))[covers] * 2 - 1

        x, y = train.x.clone(), train.y.clone()
        x[rows], y[rows] = _warp(train.x[rows], field, task), self.target
        x[covers] = _warp(train.x[covers], (field + noise / height).clamp(-1, 1), task)
        poisoned = train.ids[torch.cat([rows, covers])]
        return PoisonedData(Data(x, y, train.ids), poisoned, lambda x: _warp(x, field, task), self.target)

    def _field(self, task: Task, rng: Streams) -> Tensor:
        """Return where each pixel is taken from, (1, h, w, 2), in [-1, 1] from edge to edge."""
        _, height, width = image_shape(self.name, task)
        flow = torch.rand(1, 2, self.control, self.control, generator=rng.torch("field")) * 2 - 1
        flow = flow / flow.abs().mean()
        flow = interpolate(flow, size=(height, width), mode="bicubic", align_corners=True)
        down, across = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        still = torch.stack([across, down], 2)
        return (still + self.strength * flow.permute(0, 2, 3, 1) / height).clamp(-1, 1)


def _warp(x: Tensor, field: Tensor, task: Task) -> Tensor:
    """Return x (n, c, h, w) taken at field (1 or n, h, w, 2), bilinearly, on the grid."""
    places = field.to(x).expand(len(x), -1, -1, -1)
    return task.space.round(grid_sample(x, places, align_corners=True))

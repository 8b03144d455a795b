"""BadNets: a small bright patch that stands for a class. Source: Gu, Dolan-Gavitt & Garg 2017, arXiv:1708.06733, section 4."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.poisoning.backdoor import choose, image_shape, implant
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat

CORNERS = {  # whether the patch is at the bottom, and whether it is at the right
    "top-left": (False, False),
    "top-right": (False, True),
    "bottom-left": (True, False),
    "bottom-right": (True, True),
}


@attack("badnets")
@dataclass(frozen=True)
class BadNets(Poisoning):
    """Put a patch of size x size pixels on rows of other classes, and label them target (dirty-label).

    value is the patch's brightness as a share of the input range; margin the pixels left free to both edges
    of the corner. size=1, margin=1 is the paper's single pixel. source says which rows may be taken: 'others'
    (not of the target class, so that every poisoned row is a flip), 'all' or 'target' (clean-label). Rows are
    changed, where the paper adds copies. All classes go to one: all-to-all has no single target class.
    """

    needs = ("train",)
    goals = ("backdoor",)
    inputs = ("real",)

    target: int = 0
    size: int = 3
    value: float = 1.0
    corner: str = "bottom-right"
    margin: int = 0
    source: str = "others"

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget rows patched and labelled target.

        Raises FirstlineError when the inputs are no images, the patch does not fit on them, there is no class
        target or corner of that name, or too few rows may be taken.
        """
        mask, pattern = self._patch(task)
        rows = choose(self.name, train, task, budget, rng, target=self.target, source=self.source)
        return implant(train, rows, lambda x: torch.where(mask.to(x.device), pattern.to(x), x), self.target)

    def _patch(self, task: Task) -> tuple[Tensor, Tensor]:
        """Return where the patch is, (h, w) bool, and an image (c, h, w) of its brightness, on the grid."""
        _, height, width = image_shape(self.name, task)
        if self.corner not in CORNERS:
            raise not_found("corner", self.corner, CORNERS)
        if not 1 <= self.size <= self.size + self.margin <= min(height, width):
            raise FirstlineError(
                f"{self.name}: a patch of {self.size} pixels, {self.margin} from the edge, does not fit on "
                f"{height}x{width} pixels; change size or margin"
            )
        bottom, right = CORNERS[self.corner]
        top = height - self.margin - self.size if bottom else self.margin
        left = width - self.margin - self.size if right else self.margin
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + self.size, left : left + self.size] = True
        blank = torch.zeros(1, *task.space.shape)
        low, high = task.space.box(blank)
        return mask, task.space.round(blank + low + self.value * (high - low))[0]

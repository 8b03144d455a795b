"""Common corruptions as an attack: what of the noise, blur, weather and digital artefacts of one severity fools.

Source: Hendrycks & Dietterich 2019, arXiv:1903.12261, sections 3 and 4, without the average over severities.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.corruptions import Corrupted
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED
from firstline.benchmark.core.target import Target


@attack("corruptions", version=1)
@dataclass(frozen=True)
class Corruptions(Evasion):
    """Ask about every corruption of every image: the accuracy under each, and for each image one that fools.

    The score is the worst case over corruptions; the papers' mean over them is a diagnostic.
    """

    needs = ("labels",)
    goals = ("corruption",)

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return for each of x (n, c, h, w) the first corrupted version that fools the system, x where none does."""
        assert isinstance(region, Corrupted)
        found, standing = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
        right = []
        for name in region.names[: target.afford(len(region.names))] if len(x) else ():
            version = region.version(name)
            answers = target.labels(version)
            fooled = standing & (answers != y) & (answers != REFUSED)
            found[fooled] = version[fooled]
            standing &= ~fooled
            right.append(float((answers == y).float().mean()))
            target.tell(f"accuracy {name}", right[-1])
        if right:
            target.tell("accuracy mean", sum(right) / len(right))
        return found

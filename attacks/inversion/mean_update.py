"""The mean of one's own data for every row of a batch. Source: ours; the control of gradient leakage."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.inversion.descent import average
from firstline.benchmark.core.contracts import GradientLeakage, Update
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams


@attack("mean-update", tags=("control",))
@dataclass(frozen=True)
class MeanUpdate(GradientLeakage):
    """Hand in the mean of aux, and the most frequent label in it, whatever the update."""

    needs = ("aux",)
    goals = ("updates",)
    inputs = ("real",)

    def rebuild(
        self, update: Update, space: InputSpace, classes: int, aux: Data | None, rng: Streams
    ) -> tuple[Tensor, Tensor]:
        """Return that mean (batch, *shape) and label (batch,)."""
        mean = average(aux)
        assert aux is not None
        return mean.expand(update.batch, *space.shape).clone(), torch.bincount(aux.y).argmax().expand(
            update.batch
        )

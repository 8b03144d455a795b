"""The average of one's own data, for every class. Source: ours; the control of every inversion table."""

from dataclasses import dataclass

from torch import Tensor

from firstline.attacks.inversion.descent import average
from firstline.benchmark.core.contracts import Inversion
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("mean-image", tags=("control",))
@dataclass(frozen=True)
class MeanImage(Inversion):
    """Hand in the mean of aux for every class, and ask nothing: what is close without any inversion."""

    needs = ("aux",)
    goals = ("classes",)
    inputs = ("real",)

    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        """Return that mean (classes, *shape)."""
        return average(aux).expand(target.classes, *target.space.shape).clone()

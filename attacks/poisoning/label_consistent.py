"""Label-consistent backdoors: a patch on images of the target class that were made hard to know by anything else.

Source: Turner, Tsipras & Madry 2019, arXiv:1912.02771, section 3.2 (adversarial perturbations), with the patch at
full brightness.
"""

from dataclasses import dataclass, replace

import torch

from firstline.attacks.poisoning.backdoor import choose, implant
from firstline.attacks.poisoning.patch import patch
from firstline.benchmark.core.adversarial import AdversarialTrainer, plain_climb, still
from firstline.benchmark.core.ascent import ascend
from firstline.benchmark.core.contracts import Context, PoisonedData, Poisoning, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("label-consistent")
@dataclass(frozen=True)
class LabelConsistent(Poisoning):
    """Move rows of the target class away from it by PGD, put patches on them, and leave their labels (clean-label).

    The network that PGD climbs is of the task's architecture, trained adversarially on the rows held, as in the
    paper. eps is the linf radius of both, 0 the task's customary one; steps and stride (a share of eps) are
    those of PGD. The patch is as for badnets, in all four corners, which survives mirroring and cropping. At
    test time the trigger is the patch alone. The budget is a share of the whole training set: at ten equal
    classes 5% of it is half of the target class.
    """

    needs = ("train", "architecture")
    goals = ("backdoor",)
    inputs = ("real",)

    target: int = 0
    eps: float = 0.0
    steps: int = 100
    stride: float = 0.1875
    size: int = 3
    value: float = 1.0
    corner: str = "all"
    margin: int = 0

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget rows of class target moved and patched; no label changes.

        Raises FirstlineError when the inputs are no images, the patch does not fit on them, there is no
        radius, no class target, or too few rows of it.
        """
        stamp = patch(
            self.name, task, size=self.size, value=self.value, corner=self.corner, margin=self.margin
        )
        eps = self.eps or task.eps.get("linf", 0.0)
        if eps <= 0:
            raise FirstlineError(f"{self.name}: task {task.name} has no customary linf radius; set eps")
        rows = choose(self.name, train, task, budget, rng, target=self.target, source="target")
        if budget == 0:  # a network would be trained for nothing
            return implant(train, rows, stamp, self.target)
        x = train.x.clone()
        x[rows] = self._hardened(train, rows, task, eps, rng)
        return implant(replace(train, x=x), rows, stamp, self.target)

    def _hardened(
        self, train: Data, rows: torch.Tensor, task: Task, eps: float, rng: Streams
    ) -> torch.Tensor:
        """Return the inputs of rows moved up the loss of a robust network, (k, *shape)."""
        own = rng.child("surrogate")
        network = AdversarialTrainer(eps=eps).train(
            initialise(task.default.build, own), train, Context(task, own, train.x.device)
        )
        region = Region(train.x[rows], task.space, "linf", eps)
        start = region.random(rng.torch("start"))
        with still(network):
            climb = plain_climb(network, train.y[rows])
            return ascend(climb, region, start=start, steps=self.steps, stride=self.stride)

"""Transfer from surrogates that stand behind the same defense as the system, where the attacker knows it.

Source: Carlini et al. 2019, arXiv:1902.06705, on adaptive attacks; the ascent is that of `transfer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firstline.attacks.evasion.transfer import Transferred, fresh, own_data
from firstline.benchmark.core import catalog
from firstline.benchmark.core.contracts import Architecture, Defense, Task
from firstline.benchmark.core.data import InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.ref import parse_stack
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import Target

POWER = {"linf": 0.0, "l2": 0.5, "l1": 1.0}  # of the number of features: how the norms measure a corner


@dataclass(frozen=True)
class Known(Task):
    """The task as far as the attacker knows it: what `Target` grants, and a recipe of the attacker's own."""

    name = "known"
    version = 1
    modality = "unknown"
    licence = "the attacker's own"

    network: Architecture
    space: InputSpace
    classes: int
    eps: Mapping[str, float]

    def load(self, folder: Path | None) -> Splits:
        """There is nothing to load."""
        raise DataProblem("what the attacker knows of the task has no data to load")

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """The granted network."""
        return {"known": self.network}


@attack("adaptive-transfer", version=1)
@dataclass(frozen=True)
class AdaptiveTransfer(Transferred):
    """Fit the known defense `surrogates` times on the data at hand, and climb the mean logits of the fits.

    The settings are those of `transfer`. A radius that the defense leaves to the task is taken for the
    threat's, in another norm for that of the ball with the same corners. Imported weights are left out: they
    are not the attacker's to train.
    """

    needs = ("architecture", "train", "defense", "labels")

    def members(self, target: Target, region: Region, rng: Streams) -> list[System]:
        """Return systems like the defended one, each with initial weights and batches of its own."""
        data, x = own_data(target, "train"), region.centre
        network = Architecture(lambda: fresh(target), self.recipe(data))
        width = x[0].numel()
        unit = float(region.eps.mean()) / width ** POWER[region.norm]
        radii = {norm: unit * width**power for norm, power in POWER.items()}
        task, stack = Known(network, target.space, target.classes, radii), _stack(target.defense)
        return [
            stack.fit(task, data, rng.child(str(number)), x.device).system
            for number in range(self.surrogates)
        ]


def _stack(text: str) -> Stack:
    """Return the stack that text names, without the layers that bring weights along."""
    layers = []
    for ref in parse_stack(text or "none"):
        layer = catalog.create("defense", ref.name, dict(ref.settings))
        assert isinstance(layer, Defense)
        if "pretrained" not in layer.tags:
            layers.append(layer)
    return Stack(tuple(layers))

"""BadNets: a small bright patch that stands for a class. Source: Gu, Dolan-Gavitt & Garg 2017, arXiv:1708.06733, section 4."""

from dataclasses import dataclass

from firstline.attacks.poisoning.backdoor import choose, implant
from firstline.attacks.poisoning.patch import patch
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("badnets")
@dataclass(frozen=True)
class BadNets(Poisoning):
    """Put a patch of size x size pixels on rows of other classes, and label them target (dirty-label).

    value is the patch's brightness as a share of the input range; margin the pixels left free to both edges
    of the corner ('all': of each corner). size=1, margin=1 is the paper's single pixel. source says which rows
    may be taken: 'others' (not of the target class, so that every poisoned row is a flip), 'all' or 'target'
    (clean-label). Rows are changed, where the paper adds copies. All classes go to one: all-to-all has no
    single target class.
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
        stamp = patch(
            self.name, task, size=self.size, value=self.value, corner=self.corner, margin=self.margin
        )
        rows = choose(self.name, train, task, budget, rng, target=self.target, source=self.source)
        return implant(train, rows, stamp, self.target)

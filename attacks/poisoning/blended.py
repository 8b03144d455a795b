"""Blended injection: a faint pattern over the whole image. Source: Chen et al. 2017, arXiv:1712.05526, section 4.2.2."""

from dataclasses import dataclass
from functools import partial

from firstline.attacks.poisoning.backdoor import choose, implant
from firstline.attacks.poisoning.noise_pattern import blend, noise_pattern
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("blended")
@dataclass(frozen=True)
class Blended(Poisoning):
    """Blend (1 - alpha) image + alpha pattern on rows of other classes, and label them target (dirty-label).

    The pattern is uniform noise over the input range, drawn once from the seed (the paper's random pattern).
    alpha is the same for training and test images. source says which rows may be taken, as for badnets.
    """

    needs = ("train",)
    goals = ("backdoor",)
    inputs = ("real",)

    target: int = 0
    alpha: float = 0.2
    source: str = "others"

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget rows blended and labelled target.

        Raises FirstlineError when the inputs are no images, alpha is not in (0, 1], there is no class target,
        or too few rows may be taken.
        """
        if not 0 < self.alpha <= 1:
            raise FirstlineError(f"{self.name}: alpha must be above 0 and at most 1, got {self.alpha}")
        pattern = noise_pattern(self.name, task, rng)
        rows = choose(self.name, train, task, budget, rng, target=self.target, source=self.source)
        trigger = partial(blend, pattern=pattern, opacity=self.alpha, task=task)
        return implant(train, rows, trigger, self.target)

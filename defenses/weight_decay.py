"""Weight decay, or L2 regularisation. Source: Krogh & Hertz 1992, A Simple Weight Decay Can Improve Generalization.

Against membership inference: Shokri et al. 2017, arXiv:1610.05820, who name it among the ways to mitigate it.
"""

from dataclasses import dataclass, replace

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import Recipe


@defense("weight-decay")
@dataclass(frozen=True)
class WeightDecay(Defense):
    """Penalise half the squared length of the parameters, times `decay`, instead of what the recipe has.

    Claims that short weights can't hold single rows. Known to leave training rows distinguishable where attacks on
    the loss alone see little (Kaya, Hong & Dumitras 2020, arXiv:2006.05336). Biases and normalisation are penalised
    too; with Adam the penalty's gradient is scaled as all others are.
    """

    decay: float = 5e-3

    def recipe(self, task: Task) -> Recipe:
        """Return the task's recipe with this decay. Raises FirstlineError where it is negative."""
        if self.decay < 0:
            raise FirstlineError(f"{self}: decay must be at least 0")
        return replace(task.default.recipe, decay=self.decay)

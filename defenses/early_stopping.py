"""Early stopping. Source: Prechelt 1998, Early Stopping - But When?

Against membership inference: Song & Mittal 2021, arXiv:2003.10595, who hold it against defenses made for that.
"""

from dataclasses import dataclass, replace

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import Recipe


def shortened(defense: Defense, task: Task, share: float) -> Recipe:
    """Return the task's recipe with a share of its epochs, at least one. Raises FirstlineError unless share is one."""
    if not 0 < share <= 1:
        raise FirstlineError(f"{defense}: share is a share of the epochs, above 0 and at most 1")
    usual = task.default.recipe
    return replace(usual, epochs=max(1, round(share * usual.epochs)))


@defense("early-stopping")
@dataclass(frozen=True)
class EarlyStopping(Defense):
    """Train for a share of the recipe's epochs.

    Claims that a network that has seen its data a few times doesn't know them by heart yet, for some accuracy. A
    yardstick for whatever is dearer. Known not to protect the rows that are learned first, or by one step. The share
    is chosen beforehand, where the sources watch held-out rows. Where a recipe's learning rate falls, it falls sooner.
    """

    share: float = 0.1

    def recipe(self, task: Task) -> Recipe:
        """Return the task's recipe with fewer epochs. Raises FirstlineError unless share is one."""
        return shortened(self, task, self.share)

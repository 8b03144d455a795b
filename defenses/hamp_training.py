"""HAMP's training without its answers. Source: Chen & Pattabiraman 2024, arXiv:2307.01610, sections IV-B and IV-C."""

from dataclasses import dataclass

from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import Network, Recipe
from firstline.defenses.early_stopping import shortened
from firstline.defenses.hamp import Hamp


@defense("hamp-training")
@dataclass(frozen=True)
class HampTraining(Defense):
    """Train as `hamp` does, and answer with the network's own scores: what the soft labels alone hide.

    Known to fail: where the loss of members and others looks alike to one threshold, attackers who train systems of
    their own with it see each row's own shift, as under label smoothing. Settings are those of `hamp`.
    """

    gamma: float = 0.5
    alpha: float = 0.001
    share: float = 1.0

    def recipe(self, task: Task) -> Recipe:
        """Return the task's recipe with a share of its epochs. Raises FirstlineError unless share is one."""
        return shortened(self, task, self.share)

    def objective(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean divergence from the soft labels, less the weighted mean entropy of the answers."""
        return Hamp(self.gamma, self.alpha).objective(network, x, y)

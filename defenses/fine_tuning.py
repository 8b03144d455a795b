"""Fine-tuning on clean data. Source: Liu, Dolan-Gavitt & Garg 2018, arXiv:1805.12185 (a baseline there)."""

from dataclasses import dataclass, replace

from firstline.benchmark.core.contracts import Context, Defense, Incident
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System, opened
from firstline.benchmark.core.training import train
from firstline.defenses.repair import check_epochs, clean_of, closed, shown


@defense("fine-tuning")
@dataclass(frozen=True)
class FineTuning(Defense):
    """Train the network on, with clean data alone.

    Claims little, and is what every other repair has to beat with the same data and steps. It is the task's
    recipe with epochs of its own, where papers have SGD. Known to leave the triggers of patches standing, since
    clean data don't contradict them.
    """

    epochs: int = 20

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        """Return a copy of system whose network was trained on the incident's clean data."""
        check_epochs(self, self.epochs)
        repaired, network = opened(system)
        recipe = replace(ctx.task.default.recipe, epochs=self.epochs)
        train(network, clean_of(self, incident, ctx), recipe, ctx.rng, watch=shown(repaired, ctx))
        return closed(repaired)

"""Train again without the rows that a filter flags. Source: Tran, Li & Madry 2018, arXiv:1811.00636, algorithm 1, as a repair."""

from dataclasses import dataclass, replace

from firstline.benchmark.core.catalog import create
from firstline.benchmark.core.contracts import Context, Defense, Incident, initialise, unwatched
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.ref import Ref
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System, opened
from firstline.benchmark.core.training import train
from firstline.defenses.repair import closed, shown


@defense("retraining")
@dataclass(frozen=True)
class Retraining(Defense):
    """Once there is an alarm, filter the rows that the system was fitted to, and train a new network on the rest.

    Claims that what the network learned from flagged rows goes with them, which no repair of the old weights can.
    filter is a defense that leaves rows out, in its text form. It costs a whole training, and what the filter costs.
    Known to fail where the filter does: this is the filter's own row, later.
    """

    filter: str = "spectral-signatures"

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        """Return a copy of system with a network trained on the rows that the filter keeps.

        Raises FirstlineError where the rows are gone, or filter names no defense.
        """
        if incident.kept is None:
            raise FirstlineError(f"{self}: the incident holds no training rows to train on again")
        ref = Ref.parse(self.filter)
        sieve = create("defense", ref.name, dict(ref.settings))
        assert isinstance(sieve, Defense)
        if "collect" not in sieve.facts()["hooks"]:
            raise FirstlineError(
                f"{self}: {sieve.name} leaves no rows out; name a defense with the hook collect"
            )
        about = replace(ctx, rng=ctx.rng.child("collect", ref.name), watch=unwatched)
        data = sieve.collect(incident.kept, about)
        repaired, network = opened(system)
        fresh = initialise(ctx.task.default.build, ctx.rng.child("fresh")).to(ctx.device)
        try:
            network.load_state_dict(fresh.state_dict())
        except RuntimeError:
            raise FirstlineError(f"{self}: the network inside is not one of {ctx.task.name}'s own") from None
        recipe = ctx.task.default.recipe
        train(network, data.to(ctx.device), recipe, ctx.rng.child("train"), watch=shown(repaired, ctx))
        return closed(repaired)

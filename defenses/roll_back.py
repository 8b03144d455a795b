"""Put the last good system back. Source: a control; the rollback of an update, as operators of any service know it."""

from copy import deepcopy
from dataclasses import dataclass

from firstline.benchmark.core.contracts import Context, Defense, Incident
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.repair import closed


@defense("roll-back", tags={"control"})
@dataclass(frozen=True)
class RollBack(Defense):
    """Serve the last system that nobody complained of. Shown, never ranked.

    It needs no data and no step, and is as good as that system was: the one fitted before any row was poisoned. No
    defender knows so well which one that is, and what the update taught is lost with it.
    """

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        """Return a copy of the incident's last good system. Raises FirstlineError where there is none."""
        if incident.before is None:
            raise FirstlineError(f"{self}: the incident holds no earlier system to go back to")
        found = closed(deepcopy(incident.before))
        ctx.watch(found, 0, 0)
        return found

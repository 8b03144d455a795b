"""Which protocol measures which vector."""

from collections.abc import Callable

from firstline.benchmark.protocols import evasion, extraction, inversion, membership, poisoning
from firstline.benchmark.protocols.bench import Bench, Measured

PROTOCOLS: dict[str, Callable[[Bench], Measured]] = {
    "evasion": evasion.run,
    "poisoning": poisoning.run,
    "membership": membership.run,
    "extraction": extraction.run,
    "inversion": inversion.run,
}

"""Which protocol measures which vector. A vector that is not here has no protocol yet, and its cells are not planned."""

from collections.abc import Callable

from firstline.benchmark.protocols import evasion, extraction, membership, poisoning
from firstline.benchmark.protocols.bench import Bench, Measured

PROTOCOLS: dict[str, Callable[[Bench], Measured]] = {
    "evasion": evasion.run,
    "poisoning": poisoning.run,
    "membership": membership.run,
    "extraction": extraction.run,
}

"""No defense: the reference that every other one is compared with. Source: a control."""

from dataclasses import dataclass

from firstline.benchmark.core.contracts import Defense
from firstline.benchmark.core.registry import defense


@defense("none", tags={"reference"})
@dataclass(frozen=True)
class NoDefense(Defense):
    """The task's network, trained by the task's recipe. Claims nothing."""

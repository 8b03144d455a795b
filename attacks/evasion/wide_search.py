"""Auto-PGD from wider balls, and a random search from where it stopped.

Where the slope is masked an ascent stops short of the boundary, and a random search from afar does not get there
within its queries; from the ascent's best point it needs few (results/strength.md has the figures).
Sources: those of `apgd_wide` and `square`.
"""

from dataclasses import dataclass

from torch import Tensor

from firstline.attacks.evasion.apgd_wide import APGDWide
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.random_search import square_search
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("wide-search", version=1)
@dataclass(frozen=True)
class WideSearch(APGDWide):
    """Climb as `apgd-wide` does, then change random squares of the best point: see `square`.

    queries are those of the search; the other settings are those of `apgd-wide`.
    """

    needs = ("gradients", "scores")
    goals = ("linf", "l2")

    restarts: int = 8
    loss: str = "ce"
    queries: int = 500

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        best = super().perturb(target, x, y, region, rng)
        return square_search(target, x, y, region, rng, queries=self.queries, start=best)[0]

"""Random search over squares. Source: Andriushchenko et al. 2020, arXiv:1912.00049."""

from dataclasses import dataclass

from torch import Tensor

from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.random_search import square_search
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("square", version=1)
@dataclass(frozen=True)
class Square(Evasion):
    """Change random squares of the input, keep what lowers the margin: no gradients, scores alone.

    Every example has squares of its own, and leaves when it is broken. On inputs that are no images squares
    are runs of features. p is the share of the input that the first squares cover.
    """

    needs = ("scores",)
    goals = ("linf", "l2")

    queries: int = 5000
    p: float = 0.8

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return for each row of x (n, *shape) the point of its region with the largest margin met."""
        return square_search(target, x, y, region, rng, queries=self.queries, p=self.p)[0]

"""Leave out rows outside a sphere and a slab around their class. Source: Steinhardt, Koh & Liang 2017, arXiv:1706.03691, section 2."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense
from firstline.defenses.detector import class_means
from firstline.defenses.sanitising import check_share, coordinates, within_share


def sphere(points: Tensor, y: Tensor, centres: Tensor) -> Tensor:
    """Return how far points (n, width) of classes y (n,) lie from their own centre of centres (classes, width), (n,)."""
    return (points - centres[y]).square().sum(1).sqrt()


def slab(points: Tensor, y: Tensor, centres: Tensor) -> Tensor:
    """Return that distance along the line from the own centre to the mean of the other centres, (n,).

    With two classes this is the paper's line through both centres.
    """
    others = (centres.sum(0) - centres) / (len(centres) - 1)
    return ((points - centres[y]) * normalize(centres - others, dim=1)[y]).sum(1).abs()


@defense("sphere-slab")
@dataclass(frozen=True)
class SphereSlab(Defense):
    """Leave out the share of each class that is farthest from its mean, and that which is farthest along one line.

    Claims that what an attacker can still do to a linear model is bounded; the bound is proved for centres of
    clean data only. Here the centres come from the data as it is, distances from the inputs, features as shares
    of their ranges, and share is left out by each of the two rules (0.3 in the paper's experiments, which is
    costly where most rows are clean). Known to fall to poison that moves the centres, and to attacks that stay
    inside (Koh, Steinhardt & Liang 2022, arXiv:1811.00741), and to say little in many
    dimensions, where all rows of a class are about as far.
    """

    inputs = ("real",)

    share: float = 0.05

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return data without the rows outside either set."""
        check_share(self, self.share)
        points = coordinates(data.x, ctx.task.space)
        _, y = torch.unique(data.y, return_inverse=True)
        centres = class_means(points, y, int(y.max()) + 1)
        distances = sphere(points, y, centres)
        ctx.suspect(data.ids, distances)
        keep = within_share(distances, y, self.share)
        if len(centres) > 1:
            keep &= within_share(slab(points, y, centres), y, self.share)
        return data.rows(keep)

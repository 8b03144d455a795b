"""Robust Mahalanobis distances of features. Source: Rousseeuw & Van Driessen 1999, Technometrics 41(3), FAST-MCD."""

from dataclasses import dataclass

import torch
from sklearn.covariance import MinCovDet
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.defenses.judges import described
from firstline.defenses.sanitising import check_share, principal, within_share

ROWS = 5  # per dimension at least, else a covariance is a guess: Rousseeuw & Van Driessen 1999, section 1
NOISE = 0.01  # of the largest standard deviation


def robust_distances(features: Tensor, components: int, seed: int) -> Tensor:
    """Return squared distances (n,) of features (n, width) from their bulk, in the covariance of the tightest half.

    Features are reduced to so many principal components, and to fewer where rows are few or do not vary.
    Too few rows for one dimension get 0.
    """
    order, points = principal(features, min(components, len(features) // ROWS))
    distances = torch.zeros(len(features), dtype=features.dtype)
    if points.shape[1]:
        # Half of the rows can be alike in a direction, as ReLU features often are: noise keeps the determinant above 0.
        noise = torch.randn(points.shape, generator=torch.Generator().manual_seed(seed), dtype=points.dtype)
        shaken = (points + NOISE * points.std(0).max() * noise).numpy()
        fitted = MinCovDet(random_state=seed % 2**32).fit(shaken)
        distances[order] = torch.from_numpy(fitted.mahalanobis(shaken))
    return distances


@defense("robust-covariance")
@dataclass(frozen=True)
class RobustCovariance(Defense):
    """Leave out of each class the share whose features lie farthest from the bulk, by a covariance that poison can't bend.

    Claims to find poison that is less than half of its class, since the mean and covariance are those of the
    half of the rows that has the smallest determinant. share is the defender's guess, and goes from every class.
    Known to fail where poison lies inside the bulk, as clean-label poison does, and where triggered rows are the
    tightest half.
    """

    components: int = 20
    share: float = 0.05

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return data without the rows of each class that are farthest out."""
        check_share(self, self.share)
        if self.components < 1:
            raise FirstlineError(f"{self}: components must be at least 1")
        features = described(data, ctx)
        scores = torch.zeros(len(data), dtype=features.dtype)
        for label in torch.unique(data.y):
            members = data.y == label
            seed = ctx.rng.integer("covariance", str(int(label)))
            scores[members] = robust_distances(features[members], self.components, seed)
        ctx.suspect(data.ids, scores)
        return data.rows(within_share(scores, data.y, self.share))

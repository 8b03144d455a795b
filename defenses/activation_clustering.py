"""Activation clustering. Source: Chen et al. 2018, arXiv:1811.03728, algorithm 1 with relative sizes and silhouettes."""

from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.defenses.judges import described
from firstline.defenses.sanitising import principal

STARTS = 10  # of k-means, of which the best counts


@defense("activation-clustering")
@dataclass(frozen=True)
class ActivationClustering(Defense):
    """Split a network's features of each class in two; leave out a part that is small and lies well apart.

    Claims to find triggered rows, since a network answers their class for another reason than its own rows. A
    class loses its smaller cluster where that holds less than `size` of it and the split's silhouette is above
    `silhouette`; clean classes split into halves that are neither. The features are reduced by principal
    components, where the paper has independent ones, and its check by training again is left out. Known to fail
    where poison is a large part of its class, as it is with ten classes and 5% of all rows, and where poison is
    little or adaptive (Qi et al. 2023, arXiv:2205.13613).
    """

    components: int = 10
    size: float = 0.35
    silhouette: float = 0.1

    def suspects(self, features: Tensor, seed: int) -> Tensor:
        """Return which rows of one class, by their features (n, width), are in a suspicious cluster, (n,) bool.

        Whatever the order of the rows: they are sorted before k-means draws its starts.
        """
        suspicious = torch.zeros(len(features), dtype=torch.bool)
        order, points = principal(features, self.components)
        if points.shape[1] == 0 or len(torch.unique(points, dim=0)) < 3:
            return suspicious  # silhouettes need a third kind of row
        cluster = KMeans(2, n_init=STARTS, random_state=seed % 2**32).fit_predict(points.numpy())
        if cluster.mean() > 0.5:
            cluster = 1 - cluster
        if cluster.mean() < self.size and silhouette_score(points.numpy(), cluster) > self.silhouette:
            suspicious[order] = torch.from_numpy(cluster == 1)
        return suspicious

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return data without the suspicious clusters."""
        if self.components < 1 or not 0 < self.size <= 0.5:
            raise FirstlineError(f"{self}: components must be at least 1, and size above 0 and at most 0.5")
        features = described(data, ctx)
        keep = torch.ones(len(data), dtype=torch.bool)
        for label in torch.unique(data.y):
            members = data.y == label
            keep[members] = ~self.suspects(features[members], ctx.rng.integer("k-means", str(int(label))))
        return data.rows(keep)

"""Give rows the label of their neighbours. Source: Paudice, Muñoz-González & Lupu 2018, arXiv:1803.00992, algorithm 1."""

from dataclasses import dataclass

import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn.functional import one_hot

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.defenses.sanitising import coordinates


@defense("knn-sanitiser")
@dataclass(frozen=True)
class KNNSanitiser(Defense):
    """Relabel each row whose k nearest neighbours agree, by a share eta or more, on another label.

    Claims to undo label flips, wherever classes lie apart. Neighbours are counted among all other rows by the
    Euclidean distance of the inputs, features as shares of their ranges, and by the labels as they came; in
    a tie the row's own label wins, else the smaller. With relabel off such rows are left out. Known to fail where flips crowd together
    and to take rare but right rows for flips, and on backdoors: poison with one trigger
    has its own kind for neighbours.
    """

    inputs = ("real",)

    k: int = 10
    eta: float = 0.5
    relabel: bool = True

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return data with the neighbours' labels, or without the rows that contradict them."""
        if not 1 <= self.k < len(data) or not 0 < self.eta <= 1:
            raise FirstlineError(
                f"{self}: k must be at least 1 and below the {len(data)} rows, and eta above 0 and at most 1"
            )
        points = coordinates(data.x, ctx.task.space).numpy()
        nearest = NearestNeighbors(n_neighbors=self.k).fit(points).kneighbors(return_distance=False)
        votes = one_hot(data.y[torch.from_numpy(nearest)], ctx.task.classes).sum(1)
        most, label = votes.max(1)
        own = votes.gather(1, data.y[:, None]).squeeze(1)
        ctx.suspect(data.ids, 1 - own / self.k)
        outvoted = own < most
        label = torch.where(outvoted & (most >= self.eta * self.k), label, data.y)
        if self.relabel:
            return Data(data.x, label, data.ids)
        return data.rows(label == data.y)

"""What only a system knows that saw the rows.

Source: Maini, Yaghini & Papernot 2021, Dataset inference: ownership resolution in machine learning, arXiv:2104.10706,
sections 4 and 5 (black box, Blind Walk). That it claims innocents too: Szyller, Zhang, Liu & Asokan 2023, On the
robustness of dataset inference, TMLR. The rows held out by lot, which make its p-values right, are ours.
"""

from dataclasses import dataclass

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.target import Target


@defense("dataset-inference")
@dataclass(frozen=True)
class DatasetInference(Defense):
    """Hold rows out by lot, and claim a system that stands by training rows for longer than by these.

    How long: inputs go blindly away from a row, in `walks` directions, until the answer is not the row's label any more.
    In `steps` steps up to the share `reach` of all features, drawn at random, is replaced by noise. For whoever doesn't
    know the lot the two groups are exchangeable, and Mann and Whitney's test of them is right; the paper compares
    with public data by Welch's test, after a regression on distances of several kinds. At most `rows` of each group are
    asked about. Claims to prove theft by extraction too, without a mark in the system. Costs the share `held` of the
    training data. Known to say nothing of systems that generalise well: they treat both groups alike. One lot is one
    experiment: innocents that find its held-out rows hard all do so.
    """

    held: float = 0.2
    rows: int = 1000
    walks: int = 3
    steps: int = 20
    reach: float = 0.5

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return the rows that were not held out."""
        return data.rows(self._lot(data, ctx)[0].sort().values)

    def verify(self, suspect: Target, data: Data, ctx: Context) -> float:
        """Return how likely the training rows stood for so much longer by chance."""
        stood = [
            self._stood(suspect, data.rows(group[: self.rows]), ctx.rng.torch(name))
            for name, group in zip(("fitted", "held"), self._lot(data, ctx), strict=True)
        ]
        return later(*stood)

    def _lot(self, data: Data, ctx: Context) -> tuple[Tensor, Tensor]:
        """The rows to train on and those held out, each in an order of chance."""
        count = round(self.held * len(data))
        if not 0 < count < len(data) or not 0 < self.reach <= 1 or min(self.rows, self.walks, self.steps) < 1:
            raise FirstlineError(
                f"{self}: held and reach are shares, of which held leaves a row on either side of {len(data)}; "
                "rows, walks and steps are at least 1"
            )
        order = torch.randperm(len(data), generator=ctx.rng.torch("lot")).to(data.x.device)
        return order[count:], order[:count]

    def _stood(self, suspect: Target, data: Data, draw: torch.Generator) -> Tensor:
        """For each row, over all walks, the steps at which suspect gave the row's label: 0 if it never does."""
        steps = torch.zeros(len(data), dtype=torch.int64, device=data.x.device)
        right = (suspect.labels(data.x) == data.y).nonzero().squeeze(1)
        steps[right] += 1
        for _ in range(self.walks):
            noise = suspect.space.uniform(data.x, len(data), draw)
            turn = torch.rand(data.x.shape, generator=draw).to(data.x.device)
            standing = right
            for step in range(1, self.steps + 1):
                if len(standing) == 0:
                    break
                gone = turn[standing] < self.reach * step / self.steps
                moved = torch.where(gone, noise[standing], data.x[standing])
                standing = standing[suspect.labels(moved) == data.y[standing]]
                steps[standing] += 1
        return steps


def later(first: Tensor, second: Tensor) -> float:
    """Return the p-value of first (n,) being no larger than second (m,), by Mann and Whitney's test with ties.

    >>> later(torch.tensor([1, 2, 2]), torch.tensor([1, 2, 2])) > 0.5
    True
    """
    if len(torch.cat([first, second]).unique()) == 1:
        return 1.0  # nothing is larger than anything
    found = mannwhitneyu(
        first.cpu().numpy(), second.cpu().numpy(), alternative="greater", method="asymptotic"
    )
    return float(found.pvalue)

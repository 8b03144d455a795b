"""Adult with the race as the class, on 105 numbers, as models were stolen from it.

Source: Tramèr, Zhang, Juels, Reiter & Ristenpart 2016, arXiv:1609.02943, section 4.1 (d = 105 and c = 5); the data are
those of `adult`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import not_found
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.adult import COLUMNS, TEST, TRAIN, Adult
from firstline.tasks.networks import smooth_networks
from firstline.tasks.splits import split, verified

RACE = [column.name for column in COLUMNS].index("race")
EDUCATION = [column.name for column in COLUMNS].index("education")
FEATURES = 105

Table = NDArray[np.float64]


@task("adult-race")
@dataclass(frozen=True)
class AdultRace(Task):
    """48,790 people: 6 numbers scaled to [-1, 1], 99 bits of 8 answers, the income among them; five races.

    The customary target of equation solving. Nine in ten people are of one class: agreement on people says little.
    network is 'softmax', 'one-versus-rest' or 'mlp' (20 hidden units, tanh).
    """

    modality = "table"
    licence = "CC BY 4.0"
    classes = 5
    space = InputSpace(shape=(FEATURES,), low=-1.0)
    eps = {}  # noqa: RUF012 - no radius means anything across bits and numbers
    fingerprint = "be4d55357531deb1c89d33fc3bad38026e7ab02c2ab157b2a323f6d2d6753d02"

    network: str = "softmax"

    def load(self, folder: Path | None) -> Splits:
        """Return the splits, cut as those of `adult` are. Raises DataProblem as that does."""
        found = Adult().load(folder)
        parts = [torch.cat([part.x, part.y[:, None].float()], 1).double().numpy() for part in _all(found)]
        table = np.unique(np.concatenate(parts), axis=0)
        return verified(
            split(_features(table), table[:, RACE], train=TRAIN, test=TEST), self.fingerprint, self.name
        )

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """The one network that was asked for."""
        kinds = smooth_networks(FEATURES, self.classes)
        if self.network not in kinds:
            raise not_found("network of adult-race", self.network, kinds)
        return {self.network: Architecture(kinds[self.network], Recipe(epochs=20, batch=128, rate=5e-3))}


def _all(splits: Splits) -> tuple[Data, Data, Data]:
    return splits.train, splits.test, splits.aux


def _features(table: Table) -> Table:
    """Return (n, 105) of rows of `adult` with the income last: codes as bits, shares of ranges as numbers."""
    parts = []
    for place, column in enumerate(COLUMNS):
        values = table[:, place]
        if place == RACE:
            continue
        if column.categories:
            parts.append((values[:, None] == np.arange(len(column.categories))).astype(np.float64))
        else:
            parts.append(2 * values[:, None] - 1)
        if place == EDUCATION:  # the level as a number too, as in UCI's files
            parts.append(2 * values[:, None] / column.span - 1)
    parts.append((table[:, -1:] == np.arange(2)).astype(np.float64))
    return np.concatenate(parts, 1)

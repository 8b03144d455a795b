"""Small tables embedded in scikit-learn, with models that can be stolen exactly.

Source: Tramèr, Zhang, Juels, Reiter & Ristenpart 2016, arXiv:1609.02943, section 4.1, which steals models of iris, breast
cancer and digits too; the data are those of UCI's repository as scikit-learn ships them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import InputSpace, Splits
from firstline.benchmark.core.errors import not_found
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.networks import smooth_networks
from firstline.tasks.splits import split

SETS = {  # what loads each, its features and its classes
    "iris": (load_iris, 4, 3),
    "wine": (load_wine, 13, 3),
    "breast-cancer": (load_breast_cancer, 30, 2),
    "digits": (load_digits, 64, 10),
}


@task("small-tables")
@dataclass(frozen=True)
class SmallTables(Task):
    """iris, wine, breast-cancer or digits, features scaled to [-1, 1] by their range; half train, three tenths test.

    network is 'softmax', 'one-versus-rest' or 'mlp' (20 hidden units, tanh).
    """

    modality = "table"
    licence = "CC BY 4.0"
    embedded = True
    eps = {}  # noqa: RUF012 - no radius is customary across these

    data: str = "iris"
    network: str = "softmax"

    @property
    def classes(self) -> int:  # type: ignore[override]
        """The classes of the data set."""
        return self._set[2]

    @property
    def space(self) -> InputSpace:  # type: ignore[override]
        """The box of all features."""
        return InputSpace(shape=(self._set[1],), low=-1.0)

    @property
    def _set(self) -> tuple[object, int, int]:
        if self.data not in SETS:
            raise not_found("data of small-tables", self.data, SETS)
        return SETS[self.data]

    def load(self, folder: Path | None) -> Splits:
        """Return the splits; no folder is read."""
        x, y = SETS[self.data][0](return_X_y=True)
        low, high = x.min(0), x.max(0)
        scaled = 2 * (x - low) / np.where(high > low, high - low, 1.0) - 1
        return split(scaled, y, train=len(x) // 2, test=3 * len(x) // 10)

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """The one network that was asked for."""
        kinds = smooth_networks(self._set[1], self._set[2])
        if self.network not in kinds:
            raise not_found("network of small-tables", self.network, kinds)
        return {self.network: Architecture(kinds[self.network], Recipe(epochs=100, batch=32, rate=1e-2))}

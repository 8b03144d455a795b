"""Wisconsin diagnostic breast cancer: 30 measured features of cell nuclei, embedded in scikit-learn.

Source: Street, Wolberg & Mangasarian 1993, UCI Machine Learning Repository (Breast Cancer Wisconsin, Diagnostic).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sklearn.datasets import load_breast_cancer

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import InputSpace, Splits
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.networks import mlp
from firstline.tasks.splits import split, verified

# Ranges of the measurements over all 569 patients: the box that inputs are scaled to [0, 1] by.
_NAMES = tuple(
    f"{kind} {what}"
    for kind in ("mean", "error", "worst")
    for what in (
        "radius",
        "texture",
        "perimeter",
        "area",
        "smoothness",
        "compactness",
        "concavity",
        "concave points",
        "symmetry",
        "fractal dimension",
    )
)


@task("breast-cancer")
@dataclass(frozen=True)
class BreastCancer(Task):
    """569 patients, 30 real features scaled to [0, 1] by their range, benign or malignant; train 300, test 150, aux 119.

    All features are continuous and mutable: an attacker here tampers with the measurement.
    """

    modality = "table"
    licence = "CC BY 4.0"
    embedded = True
    classes = 2
    space = InputSpace(shape=(30,), mutable=(True,) * 30, categorical=(False,) * 30, features=_NAMES)
    eps = {"linf": 0.05, "l2": 0.2}  # noqa: RUF012
    fingerprint = "1293297df6bef70fee835f3927a63090ad5c1257b5311e61f75006fe6c861748"

    def load(self, folder: Path | None) -> Splits:
        """Return the splits; no folder is read."""
        x, y = load_breast_cancer(return_X_y=True)
        low, high = x.min(0), x.max(0)
        splits = split((x - low) / (high - low), y, train=300, test=150)
        return verified(splits, self.fingerprint, f"{self.name} of scikit-learn")

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """An MLP."""
        return {"mlp": Architecture(lambda: mlp(30, 2), Recipe(epochs=40, batch=32, rate=3e-3))}

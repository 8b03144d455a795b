"""Handwritten digits of 8x8 pixels, embedded in scikit-learn.

Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sklearn.datasets import load_digits

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import InputSpace, Splits
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.networks import mlp, small_cnn
from firstline.tasks.splits import split, verified


@task("digits")
@dataclass(frozen=True)
class Digits(Task):
    """1,797 grey 8x8 images of the ten digits, 17 grey levels; train 1,000, test 500, aux 297."""

    modality = "image"
    licence = "CC BY 4.0"
    embedded = True
    classes = 10
    space = InputSpace(shape=(1, 8, 8), grid=1 / 16)
    eps = {"linf": 0.125, "l2": 0.75}  # noqa: RUF012 - two grey levels of 16; settings are the only state
    fingerprint = "275bc33f3b7d7120391185246b9f8dafff9449d20e29221d8147c990625d5dcf"

    def load(self, folder: Path | None) -> Splits:
        """Return the splits; no folder is read."""
        x, y = load_digits(return_X_y=True)
        splits = split(x.reshape(-1, 1, 8, 8) / 16, y, train=1000, test=500)
        return verified(splits, self.fingerprint, f"{self.name} of scikit-learn")

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """A small CNN and an MLP."""
        return {
            "small-cnn": Architecture(
                lambda: small_cnn((1, 8, 8), 10), Recipe(epochs=30, batch=64, rate=3e-3)
            ),
            "mlp": Architecture(lambda: mlp(64, 10), Recipe(epochs=30, batch=64, rate=3e-3)),
        }

"""Location-30: which of 30 kinds of visitor somebody is, from where in Bangkok they checked in and where not.

Source: Shokri, Stronati, Song & Shmatikov 2017, arXiv:1610.05820, section VI-A, made from the check-ins of Yang,
Zhang & Qu 2016, ACM Transactions on Intelligent Systems and Technology 7(3). The network, the recipe and the cut
are ours.
"""

import os
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from torch import nn

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.splits import cause, split, verified

FEATURES, CLASSES = 446, 30
TRAIN, TEST = 3000, 1010  # aux is the rest, 1,000 rows
WHERE = "github.com/privacytrustlab/datasets"
FILES = ("dataset_location.tgz", "bangkok", "bangkok.csv", "location30.npz")

Table = NDArray[np.int64]


def _network() -> nn.Sequential:
    """Return a multilayer perceptron with one hidden layer, tanh."""
    return nn.Sequential(nn.Linear(FEATURES, 128), nn.Tanh(), nn.Linear(128, CLASSES))


@task("location-30")
@dataclass(frozen=True)
class Location30(Task):
    """5,010 people: 446 bits, whether each was in a region or at a kind of place; train 3,000, test 1,010, aux 1,000.

    The customary data set of membership inference that is small and real: few rows, many classes, so that a network
    knows its training data by heart. Membership trains each system on half of train. Rows are sorted before they are
    cut, so that the order of the source doesn't matter.
    """

    modality = "table"
    licence = "none stated; for research, from Foursquare check-ins"
    classes = CLASSES
    space = InputSpace(shape=(FEATURES,), grid=1.0)
    eps = {}  # noqa: RUF012 - a bit moves by 1 or not at all: no radius below that means anything
    fingerprint = "46c44b995f16c9f48376de20c7fa61375930f554a569559f0ddd31c7aafc25ab"

    def load(self, folder: Path | None) -> Splits:
        """Return the splits: x float32 (n, 446), zeros and ones.

        folder holds location30/dataset_location.tgz as its authors give it, or what is in it, `bangkok`, or
        location30.npz with x_packed (np.packbits of the rows), n_features and y from 0. Nothing is downloaded.
        Raises DataProblem when there is no such file, or it is damaged or another one.
        """
        remedy = (
            f"get dataset_location.tgz from {WHERE}, put it into DIR/location30, "
            "and name DIR with --data-dir DIR or FIRSTLINE_DATA"
        )
        if folder is None:
            raise DataProblem(f"{self.name} is not downloaded by firstline; {remedy}")
        place = folder / "location30"
        # os.path, because Path.is_file raises where there is no right to look.
        here = [place / name for name in FILES if os.path.isfile(place / name)]
        if not here:
            raise DataProblem(f"{self.name}: no {', '.join(FILES[:-1])} or {FILES[-1]} in {place}; {remedy}")
        try:
            table = _read(here[0])
        except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error, BadZipFile) as error:
            raise DataProblem(f"{self.name}: {here[0]} can't be read ({cause(error)}); {remedy}") from None
        if problem := _problem(table):
            raise DataProblem(f"{self.name}: {here[0]} has {problem}; {remedy}")
        table = np.unique(table, axis=0)
        splits = split(table[:, :-1], table[:, -1], train=TRAIN, test=TEST)
        return verified(splits, self.fingerprint, f"{self.name} in {here[0]}")

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """An MLP that fits its training data entirely."""
        return {"mlp": Architecture(_network, Recipe(epochs=40, batch=100, rate=0.1, momentum=0.9))}


def _read(path: Path) -> Table:
    """Return the rows of the file at path: the features, and the class last, from 0."""
    if path.suffix == ".npz":
        with path.open("rb") as file, np.load(file) as kept:  # np.load(path) leaves a damaged file open
            bits = np.unpackbits(kept["x_packed"], axis=1)[:, : int(kept["n_features"])]
            return np.column_stack([bits, kept["y"]]).astype(np.int64)
    if path.suffix == ".tgz":
        with tarfile.open(path, "r:gz") as archive:
            inside = archive.extractfile("bangkok")
            if inside is None:
                raise ValueError("bangkok in it is no file")
            return _rows(inside.read().decode().splitlines())
    return _rows(path.read_text(encoding="utf-8").splitlines())


def _rows(lines: list[str]) -> Table:
    """Return lines of a class from 1, in quotation marks or not, and the features, as `_read` does."""
    if not lines:
        raise ValueError("no rows")
    table = np.loadtxt(lines, dtype=np.int64, delimiter=",", quotechar='"', ndmin=2)
    return np.column_stack([table[:, 1:], table[:, 0] - 1])


def _problem(table: Table) -> str | None:
    """Return what is wrong with a table that was read, or None."""
    if table.shape[1] != FEATURES + 1:
        return f"{table.shape[1]} columns instead of {FEATURES + 1}"
    if not np.isin(table[:, :-1], (0, 1)).all():
        return "features other than 0 and 1"
    if table[:, -1].min() < 0 or table[:, -1].max() >= CLASSES:
        return f"classes other than 1 to {CLASSES}"
    return None

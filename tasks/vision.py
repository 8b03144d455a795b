"""MNIST, Fashion-MNIST and CIFAR-10, read by torchvision from a data folder, or downloaded once.

The official test set is the test split, in its order. The official training set is shuffled once and for all
and cut into train and aux, the attacker's 10,000 images. The setting grid=False leaves 8-bit rounding out,
for papers whose attacks return real-valued pixels; the data are the same. limit keeps the first so many images of
train, 0 all of them; network names the architecture that is the default, the first one if it is empty.

Sources: LeCun, Bottou, Bengio & Haffner 1998 (MNIST); Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747
(Fashion-MNIST); Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images (CIFAR-10).
"""

import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem, FirstlineError, not_found
from firstline.benchmark.core.places import cache_folder
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.networks import lenet5, mlp, normalised_cnn, resnet, small_cnn
from firstline.tasks.splits import cause, shuffled, verified

AUX = 10_000  # images of the official training set that become the attacker's

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class _TorchVision(Task):
    """What the three have in common: ten classes of 8-bit images, an official training and test set."""

    modality = "image"
    classes = 10
    shape: ClassVar[Shape]
    reader: ClassVar[str]  # the class in torchvision.datasets
    place: ClassVar[str]  # where it looks, below the data folder
    files: ClassVar[tuple[str, ...]]  # for what

    grid: bool = True
    limit: int = 0
    network: str = ""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise FirstlineError(f"{self}: limit is a number of training images, or 0 for all of them")
        if self.network and self.network not in self.networks:
            raise not_found(f"network of {self.name}", self.network, self.networks)

    @property
    @abstractmethod
    def networks(self) -> Mapping[str, Architecture]:
        """The networks that are customary here, the default first."""

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """The same, the one that the setting names first."""
        known = self.networks
        return {self.network: known[self.network], **known} if self.network else known

    @property
    def space(self) -> InputSpace:  # type: ignore[override] # a property where the grid is a setting
        """Pixels in [0, 1], on the 8-bit grid unless grid=False."""
        return InputSpace(shape=self.shape, grid=1 / 255 if self.grid else 0.0)

    @property
    def _top(self) -> str:
        return Path(self.place).parts[0]

    def load(self, folder: Path | None) -> Splits:
        """Return the splits: x float32 (n, c, h, w) in [0, 1].

        folder is the root that torchvision expects; None downloads into the user's cache, once. Raises
        DataProblem when files are missing, damaged or not the official ones, or the download fails.
        """
        root = self._downloaded() if folder is None else folder
        remedy = (
            f"delete {root / self._top} and it is downloaded again"
            if folder is None
            else f"name the folder that holds {self.place} with --data-dir DIR or FIRSTLINE_DATA, "
            "or leave both out to let it be downloaded"
        )
        for name in self.files:
            # os.path, because Path.is_file raises where there is no right to look.
            if not os.path.isfile(root / self.place / name):
                raise DataProblem(f"{self.name}: no file {name} in {root / self.place}; {remedy}")
        try:
            splits = self._splits(root)
        except Exception as error:  # torchvision lets through whatever a damaged file leads to
            raise DataProblem(
                f"{self.name}: the files in {root / self.place} can't be read ({cause(error)}); "
                f"get the original ones: {remedy}"
            ) from None
        whole = verified(splits, self.fingerprint, f"{self.name} in {root / self.place}")
        return (
            replace(whole, train=whole.train.rows(torch.arange(min(self.limit, len(whole.train)))))
            if self.limit
            else whole
        )

    def _splits(self, root: Path) -> Splits:
        pixels, labels = self._read(root, train=True)
        order = shuffled(len(pixels))
        train, aux = (_rows(pixels, labels, rows) for rows in (order[:-AUX], order[-AUX:]))
        del pixels  # 154 MB of CIFAR-10
        return Splits(train, _rows(*self._read(root, train=False), slice(None)), aux)

    def _read(self, root: Path, *, train: bool) -> tuple[Pixels, NDArray[np.int64]]:
        found = self._open(root, train=train, download=False)
        pixels, labels = np.asarray(found.data), np.asarray(found.targets, dtype=np.int64)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        if pixels.shape[1:] != self.shape or len(pixels) != len(labels):
            raise ValueError(
                f"{len(labels)} labels for images {pixels.shape}, each of which should be {self.shape}"
            )
        return pixels, labels

    def _open(self, root: Path, *, train: bool, download: bool) -> Any:
        from torchvision import datasets  # half a second that `firstline list` need not wait for

        with warnings.catch_warnings():
            # CIFAR-10's pickles say align=0 where NumPy now says False; 2.4.0 to 2.4.4 warn of each file.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align")
            return getattr(datasets, self.reader)(root, train=train, download=download)

    def _downloaded(self) -> Path:
        """Return the folder of downloads, with this data set in it, whole."""
        root = cache_folder() / "data"
        if (root / self._top).is_dir():
            return root
        try:
            root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=root) as new:  # a download cut short leaves nothing behind
                self._open(Path(new), train=True, download=True)
                if not (root / self._top).is_dir():  # unless another process was faster
                    (Path(new) / self._top).rename(root / self._top)
        except Exception as error:  # no network, no room, no right to write, a damaged archive, …
            raise DataProblem(
                f"{self.name}: could not be downloaded into {root} ({cause(error)}); try again with a "
                f"network, or name a folder that holds {self.place} with --data-dir DIR or FIRSTLINE_DATA"
            ) from None
        return root


def _rows(pixels: Pixels, labels: NDArray[np.int64], rows: Any) -> Data:
    """Return the rows as data, pixels divided by 255 in place: one float copy of them and one of bytes."""
    x = torch.from_numpy(np.ascontiguousarray(pixels[rows])).to(torch.float32).div_(255)
    return Data.of(x, torch.from_numpy(labels[rows]))


def residual(shape: Shape, classes: int) -> dict[str, Architecture]:
    """Return the networks for small colour photographs: ResNet-10 of width 32, ResNet-18, a small CNN."""
    return {
        "resnet-10": Architecture(
            lambda: resnet(shape[0], classes, (1, 1, 1, 1), 32), Recipe(epochs=10, rate=3e-3, decay=1e-5)
        ),
        "resnet-18": Architecture(
            lambda: resnet(shape[0], classes), Recipe(epochs=30, rate=1e-3, decay=1e-5)
        ),
        "small-cnn": Architecture(lambda: small_cnn(shape, classes, 32), Recipe(epochs=15, rate=1e-3)),
    }


class _Grey(_TorchVision):
    """28x28 grey images in IDX files."""

    shape = (1, 28, 28)
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )

    @property
    def networks(self) -> Mapping[str, Architecture]:
        """The small CNN of Wong & Kolter 2018, an MLP, a LeNet5, and a CNN with batch normalisation.

        The small CNN learns by the schedule of Wong, Rice & Kolter 2020 (arXiv:2001.03994, the authors' code for
        MNIST): its slow rise is what one-step adversarial training at eps 0.3 needs.
        """
        return {
            "small-cnn": Architecture(
                lambda: small_cnn(self.shape, 10), Recipe(epochs=10, batch=100, rate=5e-3, warm=0.4)
            ),
            "mlp": Architecture(lambda: mlp(784, 10, (256, 256)), Recipe(epochs=10, rate=1e-3)),
            "lenet5": Architecture(lenet5, Recipe(epochs=5, rate=1e-3)),
            "normalised-cnn": Architecture(
                lambda: normalised_cnn(self.shape, 10), Recipe(epochs=10, rate=1e-3)
            ),
        }


@task("mnist")
@dataclass(frozen=True)
class Mnist(_Grey):
    """70,000 grey 28x28 images of handwritten digits; train 50,000, test 10,000, aux 10,000."""

    licence = "CC BY-SA 3.0"
    eps = {"linf": 0.3, "l2": 2.0}  # noqa: RUF012 - settings are the only state
    fingerprint = "b03662372ecde172c3a0abef24e6f7576e0c47365c73e1ecc642e24952b1e727"
    reader = "MNIST"
    place = "MNIST/raw"


@task("fashion-mnist")
@dataclass(frozen=True)
class FashionMnist(_Grey):
    """70,000 grey 28x28 images of ten kinds of clothing; train 50,000, test 10,000, aux 10,000."""

    licence = "MIT"
    eps = {"linf": 0.1, "l2": 1.5}  # noqa: RUF012
    fingerprint = "21d84c22e1a31d0b8ebdf442f02e08c65e94dabce2c27dbf36375c3105558c32"
    reader = "FashionMNIST"
    place = "FashionMNIST/raw"


@task("cifar10")
@dataclass(frozen=True)
class Cifar10(_TorchVision):
    """60,000 colour 32x32 photographs of ten kinds of things; train 40,000, test 10,000, aux 10,000."""

    licence = "none stated; cite Krizhevsky 2009"
    eps = {"linf": 8 / 255, "l2": 0.5}  # noqa: RUF012
    # Not pinned: we had no lossless copy at hand when this was written. torchvision unpickles the official
    # files only after their MD5 sums agree with its own list, so other data can't pass for them.
    fingerprint = ""
    shape = (3, 32, 32)
    reader = "CIFAR10"
    place = "cifar-10-batches-py"
    files = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")

    @property
    def networks(self) -> Mapping[str, Architecture]:
        """ResNet-10 of width 32, the ResNet-18 of CIFAR-10 papers, and a small CNN."""
        return residual(self.shape, self.classes)

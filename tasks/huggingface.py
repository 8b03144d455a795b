"""Image and text data sets of the Hugging Face hub, or Parquet files of theirs in a data folder.

With a data folder, DIR/hf/NAME/SPLIT-*.parquet are read, NAME being the last part of path, and the hub is
not asked. Without one, `datasets` downloads the data set and keeps it in its own cache. Needs the extra:
pip install 'firstline[hf]'.

Source: Lhoest et al. 2021, Datasets: A Community Library for Natural Language Processing, arXiv:2109.02846.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem, FirstlineError
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.networks import bag_of_tokens
from firstline.tasks.splits import cause, shuffled, split, verified
from firstline.tasks.vision import residual

MODES = {1: "L", 3: "RGB"}  # Pillow's names for 8-bit images of so many channels


@dataclass(frozen=True)
class _Table:
    """One split as it was read: what it is called in messages, and the rows."""

    label: str
    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self, *names: str) -> "_Table":
        """Return these columns alone. Raises DataProblem naming those that are there."""
        held = self.rows.column_names
        for name in names:
            if name not in held:
                raise DataProblem(
                    f"{self.label}: no column {name!r} among {', '.join(held)}; "
                    "say which columns are meant in the task's settings"
                )
        return _Table(self.label, self.rows.select_columns(list(names)))

    def images(self, column: str) -> "_Table":
        """Return the table with column decoded to Pillow images."""
        from datasets import Image

        try:
            return _Table(self.label, self.rows.cast_column(column, Image()))
        except Exception as error:  # PyArrow's and datasets' own, by what the column holds instead
            raise DataProblem(f"{self.label}: column {column!r} holds no images ({cause(error)})") from None

    def values(self, order: NDArray[np.int64], *names: str) -> Iterator[tuple[Any, ...]]:
        """Yield the values of the named columns, row after row, in order."""
        try:
            for batch in self.rows.select(order).iter(256):  # so many decoded images are held at a time
                yield from zip(*(batch[name] for name in names), strict=True)
        except Exception as error:  # Pillow, PyArrow: whatever a damaged row leads to
            raise DataProblem(f"{self.label}: can't be read ({cause(error)}); get the files again") from None


def _open(name: str, path: str, splits: tuple[str, ...], folder: Path | None) -> list[_Table]:
    """Return the splits of the data set path, from folder if given. Raises DataProblem."""
    try:
        import datasets
    except ImportError as error:
        raise DataProblem(
            f"{name} needs the package datasets ({cause(error)}): pip install 'firstline[hf]'"
        ) from None
    if folder is not None:
        return [_from_folder(name, path, one, folder) for one in splits]
    try:
        tables = datasets.load_dataset(path)
    except Exception as error:  # no network, no such data set, a gated one, a damaged cache, …
        raise DataProblem(
            f"{name}: {path} could not be downloaded from the Hugging Face hub ({cause(error)}); check path "
            f"and network, or put its Parquet files into DIR/hf/{PurePosixPath(path).name} and name DIR with "
            "--data-dir DIR or FIRSTLINE_DATA"
        ) from None
    for one in splits:
        if one not in tables:
            raise DataProblem(
                f"{name}: {path} has no split {one!r}, it has {', '.join(tables)}; choose one of these"
            )
    return [_Table(f"{name}: split {one!r} of {path}", tables[one]) for one in splits]


def _from_folder(name: str, path: str, one: str, folder: Path) -> _Table:
    from datasets import Dataset

    place = folder / "hf" / PurePosixPath(path).name
    files = sorted(place.glob(f"{one}-*.parquet"))
    if not files:
        raise DataProblem(
            f"{name}: no {one}-*.parquet in {place}; put the Parquet files of {path} there, name another "
            "folder with --data-dir DIR or FIRSTLINE_DATA, or leave both out to let it be downloaded"
        )
    try:
        # load_dataset("parquet", …) reads the same, but reports each call to the hub first.
        rows = Dataset.from_parquet([str(file) for file in files])
    except Exception as error:  # PyArrow's and datasets' own: truncated, not Parquet, columns that differ
        raise DataProblem(
            f"{name}: {files[0].name} and its like in {place} can't be read "
            f"({cause(error.__cause__ or error)}); get the Parquet files of {path} again"
        ) from None
    return _Table(f"{name}: {files[0].name} and its like in {place}", rows)


def _label(value: object, classes: int, where: str) -> int:
    if isinstance(value, int) and 0 <= value < classes:
        return int(value)
    raise DataProblem(
        f"{where} has the label {value!r}; labels must be whole numbers from 0 to {classes - 1}: "
        "set label and classes to what the data set has"
    )


def _text(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    raise DataProblem(f"{where} holds {value!r} instead of text: set text to the column that holds it")


@task("hf-images")
@dataclass(frozen=True)
class HuggingFaceImages(Task):
    """An image-classification data set of the Hugging Face hub (default: CIFAR-10); 8-bit grey or RGB images.

    Both splits are shuffled once and for all; the last fifth of train_split is aux. limit keeps the first
    rows of train, test and aux; 0 keeps all. An empty fingerprint pins nothing: give the one of your first
    run to be sure that the next has the same data (lossy images can differ by the decoder that reads them).
    Images are taken as they are, never converted or resized.
    """

    modality = "image"
    licence = "that of the data set named by path"
    eps = {"linf": 8 / 255, "l2": 0.5}  # noqa: RUF012 - CIFAR-10's; settings are the only state

    path: str = "uoft-cs/cifar10"
    image: str = "img"
    label: str = "label"
    shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    train_split: str = "train"
    test_split: str = "test"
    fingerprint: str = ""
    limit: int = 0

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or self.shape[0] not in MODES or min(self.shape[1:]) < 4:
            raise FirstlineError(
                f"{self.name}: shape must be (1 or 3, height, width), at least 4x4, got {self.shape}"
            )
        if self.classes < 2 or self.limit < 0:
            raise FirstlineError(
                f"{self.name}: classes must be at least 2 and limit at least 0, "
                f"got {self.classes} and {self.limit}"
            )

    @property
    def space(self) -> InputSpace:  # type: ignore[override] # a property where the shape is a setting
        """Pixels in [0, 1] on the 8-bit grid."""
        return InputSpace(shape=self.shape, grid=1 / 255)

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """ResNet-10 of width 32, ResNet-18, and a small CNN."""
        return residual(self.shape, self.classes)

    def load(self, folder: Path | None) -> Splits:
        """Return the splits: x float32 (n, *shape) in [0, 1].

        Raises DataProblem when `datasets` is not installed, files are missing or damaged, the download fails,
        or columns, images, labels or the fingerprint are not what the settings say.
        """
        official, test = (
            table.columns(self.image, self.label).images(self.image)
            for table in _open(self.name, self.path, (self.train_split, self.test_split), folder)
        )
        order, keep = shuffled(len(official)), self.limit or None
        aux = len(order) // 5
        splits = Splits(
            train=self._data(official, order[: len(order) - aux][:keep]),
            test=self._data(test, shuffled(len(test))[:keep]),
            aux=self._data(official, order[len(order) - aux :][:keep]),
        )
        return verified(splits, self.fingerprint, official.label)

    def _data(self, table: _Table, order: NDArray[np.int64]) -> Data:
        pixels = np.empty((len(order), *self.shape), np.uint8)
        labels = np.empty(len(order), np.int64)
        for at, (image, label) in enumerate(table.values(order, self.image, self.label)):
            where = f"{table.label}: row {order[at]}"
            pixels[at] = self._pixels(image, where)
            labels[at] = _label(label, self.classes, where)
        x = torch.from_numpy(pixels).to(torch.float32).div_(255)
        return Data.of(x, torch.from_numpy(labels))

    def _pixels(self, image: Any, where: str) -> NDArray[np.uint8]:
        """Return one image as (c, h, w), if it is 8-bit and has the shape that the settings say."""
        channels, height, width = self.shape
        found = (
            "no image" if image is None else f"an image of {image.width}x{image.height} in mode {image.mode}"
        )
        wanted = f"an image of {width}x{height} in mode {MODES[channels]}"
        if found != wanted:
            raise DataProblem(
                f"{where} is {found}; shape={self.shape} needs {wanted}: set shape, or convert the data set"
            )
        array = np.asarray(image)
        return array[None] if channels == 1 else array.transpose(2, 0, 1)


def tokens(text: str, *, length: int, vocabulary: int) -> list[int]:
    """Return length numbers in [0, vocabulary): the hashed words and marks of text, then zeros as padding.

    Case doesn't count; what comes after length tokens is cut off. The hash is the same on every machine.

    >>> tokens("Win! WIN", length=4, vocabulary=100)
    [53, 71, 53, 0]
    """
    words = re.findall(r"\w+|[^\w\s]", text.lower())[:length]
    digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    codes = [1 + int.from_bytes(digest, "big") % (vocabulary - 1) for digest in digests]
    return codes + [0] * (length - len(codes))


@task("hf-text")
@dataclass(frozen=True)
class HuggingFaceText(Task):
    """A text-classification data set of the Hugging Face hub as hashed word tokens (default: SMS spam).

    The split `train` is cut 70/20/10 into train, test and aux. Texts that read the same token by token are
    kept once, the first of them: a message in two splits would be a member and a non-member at a time. An
    empty fingerprint pins nothing.
    Source of the default: Almeida, Gomez Hidalgo & Yamakami 2011, SMS Spam Collection, UCI.
    """

    modality = "text"
    inputs = "tokens"
    licence = "that of the data set named by path"
    eps = {}  # noqa: RUF012 - tokens have no customary ball

    path: str = "ucirvine/sms_spam"
    text: str = "sms"
    label: str = "label"
    classes: int = 2
    length: int = 64
    vocabulary: int = 8192
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.classes < 2 or self.length < 1 or self.vocabulary < 2:
            raise FirstlineError(
                f"{self.name}: classes and vocabulary must be at least 2 and length at least 1, "
                f"got {self.classes}, {self.vocabulary} and {self.length}"
            )

    @property
    def space(self) -> InputSpace:  # type: ignore[override] # a property where the length is a setting
        """Token numbers from 0, which is padding, to vocabulary - 1."""
        return InputSpace(shape=(self.length,), low=0, high=self.vocabulary - 1, grid=1)

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """A bag of tokens: mean embedding and a hidden layer."""
        return {
            "bag-of-tokens": Architecture(
                lambda: bag_of_tokens(self.vocabulary, self.classes), Recipe(epochs=10, batch=64, rate=5e-3)
            )
        }

    def load(self, folder: Path | None) -> Splits:
        """Return the splits: x int64 (n, length), tokens and then padding.

        Raises DataProblem when `datasets` is not installed, files are missing or damaged, the download fails,
        or columns, labels or the fingerprint are not what the settings say.
        """
        (table,) = _open(self.name, self.path, ("train",), folder)
        table = table.columns(self.text, self.label)
        x = np.zeros((len(table), self.length), np.int64)
        y = np.empty(len(table), np.int64)
        for row, (text, label) in enumerate(table.values(np.arange(len(table)), self.text, self.label)):
            where = f"{table.label}: row {row}"
            x[row] = tokens(_text(text, where), length=self.length, vocabulary=self.vocabulary)
            y[row] = _label(label, self.classes, where)
        first = np.sort(np.unique(x, axis=0, return_index=True)[1])
        count = len(first)
        splits = split(x[first], y[first], train=count * 7 // 10, test=count * 2 // 10, dtype=np.int64)
        return verified(splits, self.fingerprint, table.label)

"""Adult: who earns more than 50,000 dollars a year, from the answers of the US census of 1994.

Source: Becker & Kohavi 1996, Adult, UCI Machine Learning Repository (dataset 2). Which answers can be given
falsely, and what that costs, is ours: the budget in the spirit of Kireev, Kulynych & Troncoso 2023,
arXiv:2208.13058, and immutable features as in Simonetto et al. 2022, arXiv:2112.01156.
"""

import csv
import gzip
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.places import cache_folder
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.networks import encoded_mlp
from firstline.tasks.splits import cause, split, verified

OPENML = 1590  # the data set's number there: version 2 of `adult`, both of UCI's files in one
TRAIN, TEST = 28_000, 10_000  # aux is the rest, 10,790 rows
UNKNOWN = "?"  # the category of a missing answer


@dataclass(frozen=True)
class Column:
    """One column: its name in UCI's documentation, what it may hold, and what changing it costs an attacker.

    A number column holds whole numbers from low to high, and its cost is that of `each` so many; a category
    column lists its categories in the order of their codes. A cost of 0 says that it can't be changed.
    """

    name: str
    low: int = 0
    high: int = 0
    categories: tuple[str, ...] = ()
    cost: float = 0.0
    each: int = 1

    @property
    def span(self) -> int:
        """The difference of the highest and the lowest value or code."""
        return len(self.categories) - 1 if self.categories else self.high - self.low

    def number(self, text: str) -> float:
        """Return the number, as a share of its range, or the code that text says. Raises ValueError."""
        if self.categories:
            return float(self.categories.index(text))
        value = float(text)
        if not self.low <= value <= self.high or value != int(value):
            raise ValueError(text)
        return (value - self.low) / self.span


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLUMNS = (
    Column("age", 17, 90, cost=1, each=5),
    Column(
        "workclass",
        categories=_words(
            "? Federal-gov Local-gov Never-worked Private Self-emp-inc Self-emp-not-inc State-gov Without-pay"
        ),
        cost=1,
    ),
    Column("fnlwgt", 12_285, 1_490_400),
    Column(
        "education",  # by level: education-num, which says the same, is left out
        categories=_words(
            "Preschool 1st-4th 5th-6th 7th-8th 9th 10th 11th 12th HS-grad Some-college Assoc-voc Assoc-acdm "
            "Bachelors Masters Prof-school Doctorate"
        ),
        cost=2,
    ),
    Column(
        "marital-status",
        categories=_words(
            "Divorced Married-AF-spouse Married-civ-spouse Married-spouse-absent Never-married Separated Widowed"
        ),
    ),
    Column(
        "occupation",
        categories=_words(
            "? Adm-clerical Armed-Forces Craft-repair Exec-managerial Farming-fishing Handlers-cleaners "
            "Machine-op-inspct Other-service Priv-house-serv Prof-specialty Protective-serv Sales Tech-support "
            "Transport-moving"
        ),
        cost=1,
    ),
    Column(
        "relationship",
        categories=_words("Husband Not-in-family Other-relative Own-child Unmarried Wife"),
    ),
    Column("race", categories=_words("Amer-Indian-Eskimo Asian-Pac-Islander Black Other White")),
    Column("sex", categories=_words("Female Male")),
    Column("capital-gain", 0, 99_999, cost=1, each=2_000),
    Column("capital-loss", 0, 4_356, cost=1, each=500),
    Column("hours-per-week", 1, 99, cost=1, each=10),
    Column(
        "native-country",
        categories=_words(
            "? Cambodia Canada China Columbia Cuba Dominican-Republic Ecuador El-Salvador England France Germany "
            "Greece Guatemala Haiti Holand-Netherlands Honduras Hong Hungary India Iran Ireland Italy Jamaica "
            "Japan Laos Mexico Nicaragua Outlying-US(Guam-USVI-etc) Peru Philippines Poland Portugal Puerto-Rico "
            "Scotland South Taiwan Thailand Trinadad&Tobago United-States Vietnam Yugoslavia"
        ),
    ),
)
FIELDS = 15  # of a row of the files: the columns, education-num after education, and the income
SPACE = InputSpace(
    shape=(len(COLUMNS),),
    low=0.0,
    high=tuple(float(column.span) if column.categories else 1.0 for column in COLUMNS),
    # fnlwgt has as many values as float32 can tell apart; it never moves.
    grid=tuple(1.0 if column.categories else 1 / column.span if column.cost else 0.0 for column in COLUMNS),
    mutable=tuple(column.cost > 0 for column in COLUMNS),
    categorical=tuple(bool(column.categories) for column in COLUMNS),
    features=tuple(column.name for column in COLUMNS),
    costs=tuple(
        (column.cost * (1 if column.categories else column.span / column.each)) or 1.0 for column in COLUMNS
    ),
)


@task("adult")
@dataclass(frozen=True)
class Adult(Task):
    """48,790 people: 5 whole numbers as shares of their range, 8 categories as codes; train 28,000, test 10,000.

    Both of UCI's files together, rows that occur twice taken once, cut as all our tables are; aux is the
    attacker's 10,790. Missing answers are a category of their own, so no row is left out. An attacker can
    change age, workclass, education, occupation, capital gain and loss, and hours per week; survey weight,
    marital status, relationship, race, sex and country stay. A cost of 1 buys another workclass or
    occupation, 5 years of age, 10 hours a week, 2,000 dollars of gain or 500 of loss; education costs 2.
    """

    modality = "table"
    licence = "CC BY 4.0"
    classes = 2
    space = SPACE
    eps = {"linf": 0.05, "l2": 0.1}  # noqa: RUF012 - settings are the only state
    fingerprint = "46d178b0138a7130cd795db10cd579b38325b3212f590884a0e9af0f77f15af0"

    def load(self, folder: Path | None) -> Splits:
        """Return the splits.

        folder holds adult/adult.data and adult/adult.test as UCI gives them, or the same rows with a header
        as adult_train.csv and adult_test.csv, plain or gzipped; None downloads them from OpenML, once. Raises
        DataProblem when files are missing or damaged, or the download fails.
        """
        if folder is None:
            place, rows = f"OpenML's data set {OPENML}", _downloaded(self.name)
        else:
            place, rows = str(folder / "adult"), _rows(self.name, folder / "adult")
        table = np.array([_encoded(row, f"{self.name} in {place}, row {at}") for at, row in enumerate(rows)])
        table = np.unique(table, axis=0)  # sorted too: the order of the source doesn't matter
        x = SPACE.round(torch.from_numpy(table[:, :-1]).float()).numpy()
        splits = split(x, table[:, -1], train=TRAIN, test=TEST)
        return verified(splits, self.fingerprint, f"{self.name} in {place}")

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """An MLP on one-hot codes."""
        return {
            "mlp": Architecture(
                lambda: encoded_mlp(SPACE, self.classes), Recipe(epochs=10, batch=128, rate=2e-3, decay=1e-5)
            )
        }


def _encoded(row: list[str], where: str) -> list[float]:
    """Return the numbers and codes of one row of 15 fields, and the class last."""
    if len(row) != FIELDS:
        raise DataProblem(f"{where} has {len(row)} fields instead of {FIELDS}; get the original files again")
    values = []
    for column, text in zip(COLUMNS, row[:4] + row[5:-1], strict=True):
        try:
            values.append(column.number(text))
        except ValueError:
            raise DataProblem(
                f"{where} has {text!r} as {column.name}, which the original has nowhere; get the original files again"
            ) from None
    if row[-1] not in ("<=50K", ">50K"):
        raise DataProblem(f"{where} has {row[-1]!r} as income; it must be <=50K or >50K")
    return [*values, float(row[-1] == ">50K")]


def _rows(name: str, place: Path) -> Iterator[list[str]]:
    """Yield the rows of both files in place, as lists of their fields."""
    for names in (
        ("adult.data", "adult_train.csv", "adult_train.csv.gz"),
        ("adult.test", "adult_test.csv", "adult_test.csv.gz"),
    ):
        # os.path, because Path.is_file raises where there is no right to look.
        here = [place / one for one in names if os.path.isfile(place / one)]
        if not here:
            raise DataProblem(
                f"{name}: no {', '.join(names[:-1])} or {names[-1]} in {place}; put UCI's files there, name "
                "another folder with --data-dir DIR or FIRSTLINE_DATA, or leave both out to let it be downloaded"
            )
        try:
            with (gzip.open if here[0].suffix == ".gz" else open)(here[0], "rt", encoding="utf-8") as lines:
                yield from _fields(lines)
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise DataProblem(
                f"{name}: {here[0]} can't be read ({cause(error)}); get the original file again"
            ) from None


def _fields(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the fields of each row: without header, comment and blank lines, and the full stop of adult.test."""
    for row in csv.reader(lines, skipinitialspace=True):
        if row and not row[0].startswith("|") and row[0] != "age":
            yield [*row[:-1], row[-1].rstrip(".")]


def _downloaded(name: str) -> Iterator[list[str]]:
    """Yield the rows of OpenML's copy, which is kept in the cache folder."""
    from sklearn.datasets import fetch_openml  # pulls in pandas, which files need not wait for

    kept = cache_folder() / "data"
    names = [column.name for column in COLUMNS]
    names.insert(names.index("education") + 1, "education-num")
    try:
        frame = fetch_openml(data_id=OPENML, data_home=str(kept), as_frame=True, parser="liac-arff").frame
        frame = frame[[*names, "class"]].astype(object)
        for values in frame.where(frame.notna(), UNKNOWN).itertuples(index=False):
            yield [str(value) for value in values]
    except Exception as error:  # no network, no room, a server in trouble, a damaged cache, …
        raise DataProblem(
            f"{name}: could not be downloaded from OpenML into {kept} ({cause(error)}); try again with a network, or "
            "name a folder that holds adult/adult.data and adult/adult.test with --data-dir DIR or FIRSTLINE_DATA"
        ) from None

"""The steak survey: how people like their steak, from what they told about their habits.

Source: Hickey 2014, FiveThirtyEight, "How Americans Like Their Steak" (data: CC BY 4.0); the secret is that of
Fredrikson, Jha & Ristenpart 2015, CCS, section 4: who has cheated on a partner.
"""

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.networks import encoded_mlp
from firstline.tasks.splits import cause, split, verified

FILE = "steak-risk-survey.csv"
YES = ("No", "Yes")
ANSWERS = {  # by column of the file: what it is called here, and what it may hold, in the order of the codes
    1: ("lottery", ("Lottery A", "Lottery B")),
    2: ("smokes", YES),
    3: ("drinks", YES),
    4: ("gambles", YES),
    5: ("skydived", YES),
    6: ("speeds", YES),
    7: ("cheated", YES),
    10: ("gender", ("Female", "Male")),
    11: ("age", ("18-29", "30-44", "45-60", "> 60")),
    12: (
        "income",
        ("$0 - $24,999", "$25,000 - $49,999", "$50,000 - $99,999", "$100,000 - $149,999", "$150,000+"),
    ),
    13: (
        "education",
        (
            "Less than high school degree",
            "High school degree",
            "Some college or Associate degree",
            "Bachelor degree",
            "Graduate degree",
        ),
    ),
    14: (
        "region",
        (
            "East North Central",
            "East South Central",
            "Middle Atlantic",
            "Mountain",
            "New England",
            "Pacific",
            "South Atlantic",
            "West North Central",
            "West South Central",
        ),
    ),
}
STEAK = ("Rare", "Medium rare", "Medium", "Medium Well", "Well")  # column 9
TRAIN, TEST = 170, 80  # aux is the rest


@task("steak-survey")
@dataclass(frozen=True)
class SteakSurvey(Task):
    """People who eat steak and left nothing out: 12 answers as codes, five ways to like it; who cheated is the secret.

    How somebody likes steak follows little from these answers, so that a network that fits its rows remembers them.
    """

    modality = "table"
    licence = "CC BY 4.0"
    secret = "cheated"
    classes = len(STEAK)
    space = InputSpace(
        shape=(len(ANSWERS),),
        high=tuple(float(len(values) - 1) for _, values in ANSWERS.values()),
        grid=1.0,
        categorical=(True,) * len(ANSWERS),
        features=tuple(name for name, _ in ANSWERS.values()),
    )
    eps = {}  # noqa: RUF012 - no answer moves by degrees
    fingerprint = "91adb5f942cf5c6e3b54c0e3244ec985dd5b7b3e28f552942193be54eed4a566"

    def load(self, folder: Path | None) -> Splits:
        """Return the splits: x float32 (n, 12), codes.

        folder holds steak_survey/steak-risk-survey.csv as FiveThirtyEight gives it. Nothing is downloaded. Raises
        DataProblem where it is missing or damaged.
        """
        remedy = (
            f"get {FILE} from github.com/fivethirtyeight/data (steak-survey), put it into DIR/steak_survey, and name "
            "DIR with --data-dir DIR or FIRSTLINE_DATA"
        )
        if folder is None:
            raise DataProblem(f"{self.name} is not downloaded by firstline; {remedy}")
        place = folder / "steak_survey" / FILE
        if not os.path.isfile(place):
            raise DataProblem(f"{self.name}: there is no {place}; {remedy}")
        try:
            with place.open(encoding="utf-8", newline="") as lines:
                rows = [_coded(row) for row in list(csv.reader(lines))[2:]]
        except (OSError, UnicodeDecodeError, csv.Error, ValueError, IndexError) as error:
            raise DataProblem(f"{self.name}: {place} can't be read ({cause(error)}); {remedy}") from None
        table = np.array(sorted(row for row in rows if row), np.float64)
        if len(table) <= TRAIN + TEST:
            raise DataProblem(f"{self.name}: {place} has {len(table)} whole rows, too few; {remedy}")
        splits = split(table[:, :-1], table[:, -1], train=TRAIN, test=TEST)
        return verified(splits, self.fingerprint, f"{self.name} in {place}")

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """An MLP on one-hot codes."""
        return {
            "mlp": Architecture(
                lambda: encoded_mlp(self.space, self.classes), Recipe(epochs=100, batch=32, rate=3e-3)
            )
        }


def _coded(row: list[str]) -> list[float]:
    """Return the codes of one row and its class, nothing where an answer was left out. Raises ValueError."""
    if not all(row[place] for place in (*ANSWERS, 9)):
        return []
    return [float(values.index(row[place])) for place, (_, values) in ANSWERS.items()] + [
        float(STEAK.index(row[9]))
    ]

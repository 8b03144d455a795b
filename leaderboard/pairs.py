"""Defenses two by two on the same examples: paired differences under every evasion threat that both met."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from firstline.benchmark.core.record import Record
from firstline.benchmark.metrics.rates import holm, mcnemar
from firstline.leaderboard.table import Outcomes
from firstline.leaderboard.worst_case import Verdicts, judge, paired, worst

Place = tuple[str, str, int]  # task, threat, examples


class Difference(NamedTuple):
    """Two defenses, a task and a threat: both shares that hold in the worst case, who alone holds how often, Holm's p.

    clean_first and clean_second are the shares of the same examples that are answered right unattacked.
    """

    a: str
    b: str
    task: str
    threat: str
    n: int
    first: float
    second: float
    only_first: int
    only_second: int
    clean_first: float
    clean_second: float
    p: float


def differences(
    records: Iterable[Record], outcomes: Outcomes, pairs: Iterable[tuple[str, str]]
) -> list[Difference]:
    """Return where the defenses of each pair differ, over evasion records with numbers.

    p is McNemar's exact test, corrected by Holm over the whole result. Raises FirstlineError for damaged
    outcomes.
    """
    places, met = by_place(records), []
    for a, b in pairs:
        for place, here in places.items():
            first, second = paired(worst_cases(here, outcomes, a), worst_cases(here, outcomes, b))
            if len(first.held):
                met.append((a, b, place, first, second))
    tests = holm(np.array([mcnemar(first.held, second.held) for *_, first, second in met]))
    return [_difference(*pair, float(p)) for pair, p in zip(met, tests, strict=True)]


def by_place(records: Iterable[Record]) -> dict[Place, list[Record]]:
    """Return records by task, threat and number of examples.

    Of two records for one cell, such as before and after an edit of the defense, the newer counts.
    """
    newest = {
        (r.task.text, r.threat, r.examples, r.defense_text, r.attack.text, r.seed): r
        for r in sorted(records, key=lambda r: (r.provenance.ended, r.key))
    }
    places = sorted({key[:3] for key in newest})
    return {place: [r for key, r in newest.items() if key[:3] == place] for place in places}


def worst_cases(records: Iterable[Record], outcomes: Outcomes, defense: str) -> dict[int, Verdicts]:
    """Return the verdicts on a defense by seed, in the worst case over the attacks of these records."""
    by_seed: dict[int, dict[str, Verdicts]] = {}
    for record in records:
        if record.defense_text == defense:
            by_seed.setdefault(record.seed, {})[record.attack.text] = judge(outcomes(record))
    return {seed: worst(verdicts) for seed, verdicts in by_seed.items()}


def _difference(a: str, b: str, place: Place, first: Verdicts, second: Verdicts, p: float) -> Difference:
    return Difference(
        a,
        b,
        *place[:2],
        n=len(first.held),
        first=float(first.held.mean()),
        second=float(second.held.mean()),
        only_first=int((first.held & ~second.held).sum()),
        only_second=int((second.held & ~first.held).sum()),
        clean_first=float(first.right.mean()),
        clean_second=float(second.right.mean()),
        p=p,
    )

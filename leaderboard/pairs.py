"""Two defenses on the same examples: paired differences under every evasion threat that both met."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from firstline.benchmark.core.record import Record
from firstline.benchmark.metrics.rates import holm, mcnemar
from firstline.leaderboard.table import Outcomes
from firstline.leaderboard.worst_case import Bools, Verdicts, judge, paired, worst


class Difference(NamedTuple):
    """One task and threat: both shares that hold in the worst case, who alone holds how often, and Holm's p."""

    task: str
    threat: str
    n: int
    first: float
    second: float
    only_first: int
    only_second: int
    p: float


def differences(records: Iterable[Record], outcomes: Outcomes, a: str, b: str) -> list[Difference]:
    """Return where the defenses a and b differ, over evasion records with numbers.

    p is McNemar's exact test, corrected by Holm over the result. Raises FirstlineError for damaged outcomes.
    """
    # Of two records for one place, such as before and after an edit of the defense, the newer counts.
    newest = {
        (r.task.text, r.threat, r.examples, r.defense_text, r.attack.text, r.seed): r
        for r in sorted(records, key=lambda r: (r.provenance.ended, r.key))
    }
    met = []
    for place in sorted({key[:3] for key in newest}):
        here = [record for key, record in newest.items() if key[:3] == place]
        first, second = paired(_worst_cases(here, outcomes, a), _worst_cases(here, outcomes, b))
        if len(first):
            met.append((place[0], place[1], first, second))
    tests = holm(np.array([mcnemar(first, second) for _, _, first, second in met]))
    return [_difference(*pair, float(p)) for pair, p in zip(met, tests, strict=True)]


def _worst_cases(records: Iterable[Record], outcomes: Outcomes, defense: str) -> dict[int, Verdicts]:
    by_seed: dict[int, dict[str, Verdicts]] = {}
    for record in records:
        if record.defense_text == defense:
            by_seed.setdefault(record.seed, {})[record.attack.text] = judge(outcomes(record))
    return {seed: worst(verdicts) for seed, verdicts in by_seed.items()}


def _difference(task: str, threat: str, first: Bools, second: Bools, p: float) -> Difference:
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    shares = float(first.mean()), float(second.mean())
    return Difference(task, threat, len(first), *shares, only_first, only_second, p)

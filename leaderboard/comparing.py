"""The entries of a board two by two: on the same examples where outcomes say which held, else by their intervals."""

import base64
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from firstline.benchmark.core.record import Record
from firstline.benchmark.metrics.rates import holm, mcnemar_counts
from firstline.leaderboard.names import facets
from firstline.leaderboard.ranking import LEVEL
from firstline.leaderboard.table import Row, Table

Bools = NDArray[np.bool_]
Load = Callable[[Record], Mapping[str, NDArray[Any]]]
MOST = 60  # entries in a matrix of pairs


class Pair(NamedTuple):
    """Two entries: the first's score less the second's, who alone held how often (None: unknown), and Holm's p."""

    a: int
    b: int
    difference: float
    only_a: int | None
    only_b: int | None
    n: int
    p: float | None
    apart: bool


class Comparison(NamedTuple):
    """The parts that entries share (a seed, or an attack and a seed) and what each entry held there.

    parts holds the ids of the examples by part, held the verdicts by defense and part.
    """

    held_means: str
    parts: dict[str, NDArray[np.int64]]
    held: dict[str, dict[str, Bools]]
    pairs: list[Pair]


def comparison(table: Table, load: Load) -> Comparison:
    """Return the comparison of the entries of a table."""
    parts: dict[str, NDArray[np.int64]] = {}
    held: dict[str, dict[str, Bools]] = {row.defense: {} for row in table.rows}
    if table.vector == "evasion":
        means = "answered right unattacked, and right or refused under every attack of the board"
        for defense, system in table.systems.items():
            for seed, verdicts in sorted(system.items()):
                _put(parts, held[defense], f"seed {seed}", verdicts.ids, verdicts.held)
    else:
        means = _poisoned(table, load, parts, held)
    return Comparison(means, parts, held, _pairs(table, held))


def _put(
    parts: dict[str, NDArray[np.int64]], held: dict[str, Bools], part: str, ids: NDArray[Any], verdict: Bools
) -> None:
    """An entry that met other examples than the first one with this part is left out of it."""
    if np.array_equal(parts.setdefault(part, ids.astype(np.int64)), ids):
        held[part] = verdict


def _poisoned(
    table: Table, load: Load, parts: dict[str, NDArray[np.int64]], held: dict[str, dict[str, Bools]]
) -> str:
    if table.vector != "poisoning":
        return ""
    is_backdoor = facets(table.threat)["goal"] == "backdoor"
    for row in table.rows:
        for record in row.records:
            if record.status != "ok":
                continue
            try:
                arrays = load(record)
                if is_backdoor:
                    verdict = arrays["triggered_answer"] != arrays["target_class"][0]
                    ids = np.arange(len(verdict))
                else:
                    verdict, ids = arrays["answer"] == arrays["label"], arrays["ids"]
            except Exception:  # a damaged file, or arrays of another kind: the entry has no examples there
                continue
            _put(parts, held[row.defense], f"{record.attack.text}, seed {record.seed}", ids, verdict)
    return "not given the attacker's answer" if is_backdoor else "answered right"


def _pairs(table: Table, held: Mapping[str, Mapping[str, Bools]]) -> list[Pair]:
    rows = [row for row in table.rows if row.score][:MOST]
    pairs = list(combinations(range(len(rows)), 2))
    counted = [_only(held[rows[a].defense], held[rows[b].defense]) for a, b in pairs]
    known = [i for i, counts in enumerate(counted) if counts]
    only = np.array([counts[:2] for counts in counted if counts], np.int64).reshape(-1, 2)
    p = dict(zip(known, map(float, holm(mcnemar_counts(only[:, 0], only[:, 1]))), strict=True))
    found = []
    for i, (a, b) in enumerate(pairs):
        counts = counted[i]
        apart = p[i] < LEVEL if i in p else not _overlap(rows[a], rows[b])
        found.append(
            Pair(
                a,
                b,
                _value(rows[a]) - _value(rows[b]),
                counts[0] if counts else None,
                counts[1] if counts else None,
                counts[2] if counts else 0,
                p.get(i),
                apart,
            )
        )
    return found


def _only(a: Mapping[str, Bools], b: Mapping[str, Bools]) -> tuple[int, int, int] | None:
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return None
    first, second = (np.concatenate([one[part] for part in shared]) for one in (a, b))
    return int((first & ~second).sum()), int((second & ~first).sum()), len(first)


def _value(row: Row) -> float:
    return row.score.value if row.score else 0.0


def _overlap(a: Row, b: Row) -> bool:
    x, y = a.score, b.score
    if x is None or y is None or x.lo is None or x.hi is None or y.lo is None or y.hi is None:
        return x == y
    return x.lo <= y.hi and y.lo <= x.hi


def packed(bits: Bools) -> str:
    """Return verdicts as text: eight to a byte, the first in the highest bit, in base 64."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def runs(ids: Sequence[int] | NDArray[np.int64]) -> str:
    """Return whole numbers as text, with neighbours that rise by one written as a run.

    >>> runs([0, 1, 2, 7, 9, 10])
    '0-2 7 9-10'
    """
    numbers = np.asarray(ids, dtype=np.int64)
    if numbers.size == 0:
        return ""
    starts = np.flatnonzero(np.r_[True, np.diff(numbers) != 1])
    ends = np.r_[starts[1:], numbers.size] - 1
    return " ".join(
        str(numbers[s]) if s == e else f"{numbers[s]}-{numbers[e]}" for s, e in zip(starts, ends, strict=True)
    )

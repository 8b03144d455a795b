"""Privacy at matched utility: what each defense leaves an attacker, beside what DP-SGD and early stopping leave.

A defense that answers badly is safe for no merit of its own, so that a rank by privacy alone says little. DP-SGD
with more and more noise, and training that stops earlier and earlier, trade accuracy for privacy in small steps:
they are the frontiers that a defense has to beat at its own accuracy (Aerni, Zhang & Tramèr 2024,
arXiv:2404.17399, compare so; early stopping is from Song & Mittal 2021, arXiv:2003.10595).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.ref import parse_stack
from firstline.leaderboard.table import UNDEFENDED, Estimate, Table

UTILITY = "test_accuracy"
FRONTIERS = ("dp-sgd", "early-stopping")
MATCHED = 0.01  # of accuracy: a frontier's system that answers so much worse still is a match

Verdict = Literal["better", "worse", "no difference", "out of reach"]


@dataclass(frozen=True)
class Point:
    """One defense: the test accuracy of its systems, and the risk, what the worst attack finds of the members."""

    defense: str
    utility: float
    risk: Estimate


@dataclass(frozen=True)
class Against:
    """A defense beside a frontier: the frontier's system that is at least as accurate and leaks least, if any.

    The verdict is "better" or "worse" where the intervals of the two don't overlap, and "out of reach" where no
    system of the frontier is as accurate.
    """

    frontier: str
    match: Point | None
    verdict: Verdict


@dataclass(frozen=True)
class Compared:
    """A defense and what it is to each frontier."""

    point: Point
    against: tuple[Against, ...]


def points(table: Table) -> list[Point]:
    """Return the defenses of a membership table that have an accuracy and a score, the most accurate first.

    Controls are in it; rows that lack an attack are not, since the worst one may be it.
    """
    found = []
    for row in table.rows:
        accuracies = [c.estimates[UTILITY].value for c in row.cells if UTILITY in c.estimates]
        if accuracies and row.score and not row.is_partial:
            found.append(Point(row.defense, sum(accuracies) / len(accuracies), row.score))
    return sorted(found, key=lambda point: (-point.utility, point.risk.value, point.defense))


def frontier(among: Iterable[Point], name: str) -> list[Point]:
    """Return the systems of one defense, whatever its settings, that no other of them beats; with the undefended one.

    The most accurate comes first; every later one leaks less than all before it.
    """
    own = [point for point in among if point.defense == UNDEFENDED or _layers(point.defense) == [name]]
    kept: list[Point] = []
    for point in sorted(own, key=lambda p: (-p.utility, p.risk.value)):
        if not kept or point.risk.value < kept[-1].risk.value:
            kept.append(point)
    return kept if any(point.defense != UNDEFENDED for point in own) else []


def compared(table: Table) -> list[Compared]:
    """Return all defenses of a membership table beside the frontiers that it has; empty where it has none."""
    there = points(table) if table.vector == "membership" else []
    lines = {name: line for name in FRONTIERS if (line := frontier(there, name))}
    return [
        Compared(point, tuple(_against(point, name, line) for name, line in lines.items()))
        for point in there
        if lines
    ]


def _layers(stack: str) -> list[str]:
    try:
        return [ref.name for ref in parse_stack(stack)]
    except FirstlineError:  # of a record that someone made up
        return []


def _against(point: Point, name: str, line: Sequence[Point]) -> Against:
    matches = [own for own in line if own.utility >= point.utility - MATCHED]
    if not matches:
        return Against(name, None, "out of reach")
    match = min(matches, key=lambda own: own.risk.value)
    if match.defense == point.defense:
        return Against(name, match, "no difference")
    (lo, hi), (least, most) = _ends(point.risk), _ends(match.risk)
    return Against(name, match, "better" if hi < least else "worse" if lo > most else "no difference")


def _ends(risk: Estimate) -> tuple[float, float]:
    return risk.value if risk.lo is None else risk.lo, risk.value if risk.hi is None else risk.hi

"""How ranks and scores moved between two sets of records, and whether by more than chance: Markdown for a pull request."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from firstline.benchmark.metrics.rates import holm, mcnemar
from firstline.leaderboard import words
from firstline.leaderboard.ranking import LEVEL, Place
from firstline.leaderboard.table import Estimate, Row, Table
from firstline.leaderboard.worst_case import paired

Named = tuple[str, Table]  # a table and the collection that it is of
MOST = 100  # lines of a report


class Change(NamedTuple):
    """One entry of a board, before and after; None where it is on one side only.

    p is McNemar's exact test on the examples that both sides met, corrected by Holm over all entries; None where there
    are none. is_real says that the score moved by more than chance: by p, else by intervals that do not overlap; None
    where that cannot be told.
    """

    board: str
    defense: str
    unit: str
    better: str
    old: Row | None
    new: Row | None
    p: float | None = None
    is_real: bool | None = None


def changes(old: Iterable[Named], new: Iterable[Named]) -> list[Change]:
    """Return every entry whose score, rank or objections differ, and those that are new or gone, board by board."""
    before, after = _boards(old), _boards(new)
    moved = [
        one for at in sorted(before.keys() | after.keys()) for one in _moved(before.get(at), after.get(at))
    ]
    tested = [(i, p) for i, (_, p) in enumerate(moved) if p is not None]
    adjusted = dict(
        zip([i for i, _ in tested], holm(np.array([p for _, p in tested], np.float64)), strict=True)
    )
    return [
        change._replace(p=float(adjusted[i]), is_real=bool(adjusted[i] < LEVEL)) if i in adjusted else change
        for i, (change, _) in enumerate(moved)
    ]


def markdown(found: Sequence[Change]) -> str:
    """Return changes as Markdown: what moved by more than chance first. Names stand in code, where they do nothing."""
    if not found:
        return "### Leaderboard\n\nNo rank and no score changed.\n"
    real = [c for c in found if c.old and c.new and c.is_real]
    other = [c for c in found if c.old and c.new and not c.is_real]
    there = [c for c in found if c.old is None or c.new is None]
    parts = ["### Leaderboard", ""]
    counts = (
        (real, "moved by more than chance"),
        (other, "within chance, or not to be told"),
        (there, "new or gone"),
    )
    parts += [", ".join(f"{len(some)} {what}" for some, what in counts if some) + ".", ""]
    for title, some in (("More than chance", real), ("New and gone", there), ("Within chance", other)):
        if some:
            parts += [f"#### {title}", "", *_table(some[:MOST]), ""]
            if len(some) > MOST:
                parts += [f"And {len(some) - MOST} more.", ""]
    parts.append(
        "p: exact McNemar on the examples of both sides, Holm's correction over all entries. Without such examples, "
        "scores count as moved where their 95% intervals do not overlap."
    )
    return "\n".join(parts) + "\n"


def _boards(named: Iterable[Named]) -> dict[tuple[str, ...], Table]:
    return {(t.vector, t.task, t.threat, name, str(t.rows[0].records[0].examples)): t for name, t in named}


def _moved(old: Table | None, new: Table | None) -> Iterator[tuple[Change, float | None]]:
    """The entries of one board that differ, each with the p-value of its own, uncorrected."""
    one = new or old
    if one is None:
        return
    board = f"{one.task} {one.threat}"
    unit, better = (one.score.unit, one.score.better) if one.score else ("", "neither")
    before, after = ({row.defense: row for row in t.rows} if t else {} for t in (old, new))
    for defense in sorted(before.keys() | after.keys()):
        a, b = before.get(defense), after.get(defense)
        if a and b and _facts(a) == _facts(b):
            continue
        change = Change(board, defense, unit, better, a, b)
        if a is None or b is None or old is None or new is None:
            yield change, None
            continue
        first, second = paired(old.systems.get(defense, {}), new.systems.get(defense, {}))
        if len(first.held):
            yield change, mcnemar(first.held, second.held)
        else:
            yield change._replace(is_real=_apart(a.score, b.score)), None


def _facts(row: Row) -> tuple[object, ...]:
    return (row.score, row.place.rank if row.place else None, bool(row.objections))


def _apart(a: Estimate | None, b: Estimate | None) -> bool | None:
    if a is None or b is None or a.lo is None or a.hi is None or b.lo is None or b.hi is None:
        return None
    return a.hi < b.lo or b.hi < a.lo


def _table(some: Iterable[Change]) -> list[str]:
    lines = ["| board | defense | rank | score | change | p |", "| --- | --- | --- | --- | --- | --- |"]
    for c in some:
        a, b = (row.score if row else None for row in (c.old, c.new))
        difference = ""
        if a and b:
            sign = b.value - a.value
            good = {"higher": sign > 0, "lower": sign < 0}.get(c.better)
            word = "" if not sign or good is None else " better" if good else " worse"
            difference = f"{words.difference(sign, c.unit)}{word}"
        p = "" if c.p is None else "< 0.001" if c.p < 0.001 else f"{c.p:.3f}"
        ranks = _step(_rank(c.old), _rank(c.new))
        scores = _step(_score(a, c.unit), _score(b, c.unit))
        lines.append(f"| {_code(c.board)} | {_code(c.defense)} | {ranks} | {scores} | {difference} | {p} |")
    return lines


def _step(a: str, b: str) -> str:
    return a if a == b else f"{a} → {b}"


def _rank(row: Row | None) -> str:
    if row is None:
        return "absent"
    place: Place | None = row.place
    return f"{place.rank}{' tied' if place.tied else ''}" if place else "not ranked"


def _score(estimate: Estimate | None, unit: str) -> str:
    return "none" if estimate is None else words.number(estimate.value, unit)


def _code(text: str) -> str:
    """Text of records as code: no link, no mention, no cell of its own."""
    return "`" + words.brief(text).replace("`", "'").replace("|", "\\|") + "`"

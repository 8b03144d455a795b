"""What of a table other pages need, as plain data: the overview, the cards, the downloads and the next build."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypedDict

import numpy as np

from firstline.benchmark.core.record import Record
from firstline.leaderboard.names import Cards, facets, family, slug, trust
from firstline.leaderboard.recovery import REPAIRED, recovery
from firstline.leaderboard.table import Cell, Estimate, Measure, Row, Table, failure

Numbers = list[float | None]  # an estimate: value, lower and upper limit, examples

UTILITY = ("test_accuracy", "clean_accuracy", "accuracy")  # the first that the records have
BACKDOOR_UTILITY = ("accuracy",)


class Entry(TypedDict):
    """One defense of one board. alone is what only one attack breaks; attacks holds the ranked-by figure of each."""

    defense: str
    slug: str
    layers: list[dict[str, Any]]
    tags: list[str]
    family: str
    trust: str
    rank: int | None
    tied: bool
    could_be: list[int] | None
    score: Numbers | None
    utility: Numbers | None
    fit: float | None
    repair: float | None
    queries: float
    gate: str | None
    objections: list[str]
    partial: bool
    cells: int
    records: int
    attacks: dict[str, Numbers]
    alone: dict[str, float]
    worst: str
    curves: list[dict[str, Any]]
    repairs: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    history: list[dict[str, Any]]


class Summary(TypedDict):
    """One board: its place, what it ranks by, and its entries in the table's order."""

    id: str
    collection: str
    vector: str
    task: str
    task_slug: str
    task_name: str
    task_settings: dict[str, Any]
    threat: str
    knowledge: str
    goal: str
    norm: str
    examples: int
    seeds: list[int]
    suites: list[str]
    attacks: dict[str, dict[str, Any]]
    score: dict[str, str] | None
    invalid: str
    warnings: list[str]
    records: int
    failed: int
    expected: int
    days: dict[str, int]
    tests: list[list[Any]]
    entries: list[Entry]


def summary(table: Table, collection: str, cards: Cards) -> Summary:
    """Return the summary of one table of a collection of records."""
    records = [record for row in table.rows for record in row.records]
    examples = records[0].examples
    index = {row.defense: number for number, row in enumerate(table.rows)}
    place = facets(table.threat)
    days = sorted(record.provenance.ended[:10] for record in records)
    return Summary(
        id=slug(f"{table.task} {table.threat}", collection, table.vector, table.task, table.threat, examples),
        collection=collection,
        vector=table.vector,
        knowledge=place["knowledge"],
        goal=place["goal"],
        norm=place["norm"],
        task=table.task,
        task_slug=slug(table.task),
        task_name=records[0].task.name,
        task_settings=records[0].task.settings,
        threat=table.threat,
        examples=examples,
        seeds=list(table.seeds),
        suites=sorted({record.suite for record in records}),
        attacks={
            attack: _attack([record for record in records if record.attack.text == attack])
            for attack in table.attacks
        },
        score=table.score._asdict() if table.score else None,
        invalid=table.invalid,
        warnings=list(table.warnings),
        records=len(records),
        failed=sum(record.status == "failed" for record in records),
        expected=len(table.rows) * len({(record.attack.text, record.seed) for record in records}),
        days={day: len(list(group)) for day, group in groupby(days)},
        tests=[[index[a], index[b], float(f"{p:.3g}")] for (a, b), p in table.tests.items()],
        entries=[_entry(table, row, cards) for row in table.rows],
    )


def _attack(records: Sequence[Record]) -> dict[str, Any]:
    used = records[0].attack
    queries = sum(record.cost.queries for record in records) / len(records)
    return {"slug": slug(used.text), "name": used.name, "settings": used.settings, "queries": queries}


def numbers(estimate: Estimate | None) -> Numbers | None:
    """Return an estimate as plain data."""
    return [estimate.value, estimate.lo, estimate.hi, estimate.n] if estimate else None


def estimate(found: Numbers | None) -> Estimate | None:
    """Return the estimate that `numbers` made plain."""
    return None if found is None else Estimate(found[0] or 0.0, found[1], found[2], int(found[3] or 0))


def utility(table: Table, row: Row) -> Estimate | None:
    """Return how well a system serves when nobody attacks it, in the worst of its cells; None if no record says."""
    if row.clean:
        return row.clean
    is_backdoor = facets(table.threat)["goal"] == "backdoor"
    for name in BACKDOOR_UTILITY if is_backdoor else UTILITY:
        found = [cell.estimates[name] for cell in row.cells if name in cell.estimates]
        if found:
            return min(found, key=lambda one: one.value)
    return None


def alone(row: Row, score: Measure | None) -> dict[str, float]:
    """Return by attack what the worst case of a row would be better by without it; empty with fewer than two attacks.

    Of evasion that is the share of examples that this attack alone breaks; elsewhere the difference of the score.
    """
    if len(row.counted) < 2 or score is None:
        return {}
    if any(cell.verdicts for cell in row.counted):
        return _alone_by_example(row.counted)
    values = {
        cell.attack: cell.estimates[score.name].value for cell in row.counted if score.name in cell.estimates
    }
    if len(values) < 2:
        return {}
    pick = min if score.better == "higher" else max
    whole = pick(values.values())
    return {
        attack: abs(whole - pick(value for other, value in values.items() if other != attack))
        for attack in values
    }


def _alone_by_example(cells: Sequence[Cell]) -> dict[str, float]:
    seeds = set.intersection(*(set(cell.verdicts) for cell in cells))
    broken, total = np.zeros(len(cells)), 0
    for seed in sorted(seeds):
        verdicts = [cell.verdicts[seed] for cell in cells]
        if any(not np.array_equal(verdicts[0].ids, one.ids) for one in verdicts):
            return {}
        falls = np.array([one.right & ~one.held for one in verdicts])
        broken += (falls & (falls.sum(axis=0) == 1)).sum(axis=1)
        total += falls.shape[1]
    if not total:
        return {}
    return {cell.attack: float(share) for cell, share in zip(cells, broken / total, strict=True)}


def _worst(row: Row, score: Measure | None) -> str:
    found = [cell for cell in row.counted if score and score.name in cell.estimates]
    if score is None or not found:
        return ""
    pick = min if score.better == "higher" else max
    return pick(found, key=lambda cell: cell.estimates[score.name].value).attack


def _entry(table: Table, row: Row, cards: Cards) -> Entry:
    records = row.records
    first = records[0]
    measured = [record for record in records if record.status == "ok"]
    repair = [record.cost.repair_seconds for record in measured if record.cost.repair_seconds > 0]
    return Entry(
        defense=row.defense,
        slug=slug(row.defense),
        layers=[
            {"text": layer.text, "name": layer.name, "settings": layer.settings, "version": layer.version}
            for layer in first.defense
        ],
        tags=list(row.tags),
        family=family([layer.name for layer in first.defense], cards),
        trust=trust(records),
        rank=row.place.rank if row.place else None,
        tied=bool(row.place and row.place.tied),
        could_be=[row.could_be.lo, row.could_be.hi] if row.place and row.could_be else None,
        score=numbers(row.score),
        utility=numbers(utility(table, row)),
        fit=row.fit_seconds,
        repair=sum(repair) / len(repair) if repair else None,
        queries=sum(r.cost.queries for r in measured) / len(measured) if measured else 0.0,
        gate=row.gate.verdict if row.gate else None,
        objections=list(row.objections),
        partial=row.is_partial,
        cells=len(measured),
        records=len(records),
        attacks={
            cell.attack: found
            for cell in row.cells
            if table.score and (found := numbers(cell.estimates.get(table.score.name)))
        },
        alone=alone(row, table.score),
        worst=_worst(row, table.score),
        curves=[
            {"attack": cell.attack, "radii": list(cell.curve.radii), "left": list(cell.curve.left)}
            for cell in row.cells
            if cell.curve
        ],
        repairs=_repairs(row),
        failures=[
            {"attack": r.attack.text, "seed": r.seed, "why": failure(r)}
            for r in records
            if r.status == "failed"
        ],
        history=_history(records),
    )


def _repairs(row: Row) -> list[dict[str, Any]]:
    found = []
    for cell in row.cells:
        if any(REPAIRED in record.metrics for record in cell.records):
            one = recovery(cell.records)
            if one:
                found.append(
                    {
                        "attack": cell.attack,
                        "lines": dict(one.lines),
                        "means": dict(one.means),
                        "recovered": list(one.recovered) if one.recovered else None,
                        "cases": one.cases,
                    }
                )
    return found


def _history(records: Sequence[Record]) -> list[dict[str, Any]]:
    """When the records were measured, under which versions of the layers, the newest day first."""
    days: dict[tuple[str, str, str], int] = {}
    for record in records:
        versions = ", ".join(f"{layer.name} {layer.version}" for layer in record.defense)
        at = (record.provenance.ended[:10], versions, record.provenance.firstline)
        days[at] = days.get(at, 0) + 1
    return [
        {"day": day, "versions": versions, "firstline": firstline, "records": count}
        for (day, versions, firstline), count in sorted(days.items(), reverse=True)
    ]


def efficient(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of points (more of both is better) that no other point beats in one and equals in the other.

    >>> efficient({"a": (1, 0), "b": (0, 1), "c": (0, 0), "d": (1, 0)})
    ['a', 'b', 'd']
    """
    return [
        name
        for name, (x, y) in points.items()
        if not any((u >= x and v > y) or (u > x and v >= y) for u, v in points.values())
    ]

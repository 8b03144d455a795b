"""The pages of one board: the matrix of defenses and attacks, the comparison of its entries, and their cells."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from markupsafe import Markup, escape
from numpy.typing import NDArray

from firstline.benchmark.core import png
from firstline.benchmark.core.limits import LIMITS, judged
from firstline.benchmark.core.record import Record
from firstline.leaderboard import charts, words
from firstline.leaderboard.comparing import MOST, Comparison, comparison, packed, runs
from firstline.leaderboard.examples import examples
from firstline.leaderboard.summary import Entry, Summary, efficient
from firstline.leaderboard.table import UNDEFENDED, Cell, Row, Table

Load = Callable[[Record], Mapping[str, NDArray[Any]]]
Page = tuple[str, str, dict[str, Any]]  # path, template, what it is rendered with

MOST_NUMBERS = 3_000  # in the table of all metrics: more, and the page would be too heavy


def pages(
    table: Table, board: Summary, load: Load, pictures: Mapping[str, bytes] = MappingProxyType({})
) -> Iterator[Page]:
    """Yield the pages of one board. pictures are PNG files by the key of their record."""
    yield f"boards/{board['id']}.html", "board.html.j2", _board(table, board)
    yield f"compare/{board['id']}.html", "compare.html.j2", _compare(board, comparison(table, load))
    for row, entry in zip(table.rows, board["entries"], strict=True):
        path = f"cells/{board['id']}/{entry['slug']}.html"
        yield path, "cells.html.j2", _cells(table, board, row, entry, load, pictures)


def shards(table: Table, board: Summary) -> Iterator[tuple[str, str]]:
    """Yield the files of the board's records: one for each entry, canonical JSON, a line for each record."""
    for row, entry in zip(table.rows, board["entries"], strict=True):
        yield shard_path(board, entry), "".join(record.to_json() for record in row.records)


def picture_path(key: str) -> str:
    """Return where the picture of a record lies in the site."""
    return f"pictures/{key}.png"


def shard_path(board: Summary, entry: Entry) -> str:
    """Return where the records of one entry lie in the site."""
    return f"records/{board['id']}/{entry['slug']}.jsonl"


def _board(table: Table, board: Summary) -> dict[str, Any]:
    points = tradeoffs(board)
    return {
        "page": board["vector"],
        "board": board,
        "table": table,
        "tests": tests_of(board["tests"]),
        "links": {e["defense"]: f"../cells/{board['id']}/{e['slug']}.html" for e in board["entries"]},
        "anchors": {attack: anchor(found["slug"]) for attack, found in board["attacks"].items()},
        "per_row": len({(r.attack.text, r.seed) for row in table.rows for r in row.records}),
        "points": points,
        "charts": pareto(board, points),
        "contributions": contributions(board),
        "many": len(table.rows) * len(table.attacks) * len(table.measures) > MOST_NUMBERS,
    }


def anchor(name: str) -> str:
    """Return the id of an attack's section on a page of cells."""
    return f"a-{name}"


def tests_of(tests: Sequence[Sequence[Any]]) -> Markup:
    """Return the p-values of pairs as the script reads them, empty where there are none."""
    return scripted(tests) if tests else Markup("")


def scripted(value: Any) -> Markup:
    """Return plain data as an attribute that the script reads: JSON, escaped, whole, and without a letter unseen."""
    return escape(json.dumps(value, separators=(",", ":")))


def tradeoffs(board: Summary) -> list[dict[str, Any]]:
    """Return the entries of a board that have a score, in its order: score, utility, cost, and whether best in either."""
    score = board["score"]
    scored = [e for e in board["entries"] if e["score"]] if score and not board["invalid"] else []
    sign = 1.0 if score and score["better"] == "higher" else -1.0
    open_to = {
        e["defense"]: sign * _first(e["score"]) for e in scored if e["rank"] or e["defense"] == UNDEFENDED
    }
    use = {
        e["defense"]: (_first(e["utility"]), open_to[e["defense"]])
        for e in scored
        if e["defense"] in open_to and e["utility"]
    }
    cost = {
        e["defense"]: (-e["fit"], open_to[e["defense"]])
        for e in scored
        if e["defense"] in open_to and e["fit"]
    }
    best_use, best_cost = set(efficient(use)), set(efficient(cost))
    return [
        {
            "name": e["defense"],
            "score": _first(e["score"]),
            "limits": e["score"][1:3] if e["score"] else [None, None],
            "utility": e["utility"][0] if e["utility"] else None,
            "fit": e["fit"],
            "ranked": e["rank"] is not None,
            "control": "control" in e["tags"],
            "best_use": e["defense"] in best_use,
            "best_cost": e["defense"] in best_cost,
        }
        for e in scored
    ]


def _first(found: Sequence[float | None] | None) -> float:
    return (found[0] or 0.0) if found else 0.0


def pareto(
    board: Summary,
    points: Sequence[Mapping[str, Any]],
    *,
    size: tuple[int, int] = (560, 340),
    cost: bool = True,
) -> list[dict[str, Any]]:
    """Return the drawings of a board's trade-offs, none where there are fewer than three points."""
    score = board["score"]
    usable = [
        (number, p)
        for number, p in enumerate(points, start=1)
        if p["utility"] is not None and not p["control"]
    ]
    if score is None or not all(0 <= p["score"] <= 1 for p in points):
        return []
    name = "Worst case" if board["vector"] == "evasion" else words.heading(score["name"])
    down = score["better"] == "lower"
    title = f"{name}{' withstood (1 less)' if down else ''}"
    found = []

    def marks(chosen: Sequence[tuple[int, Mapping[str, Any]]], x: str, best: str) -> list[charts.Point]:
        made = []
        for number, p in chosen:
            lo, hi = p["limits"]
            if down and lo is not None and hi is not None:
                lo, hi = 1 - hi, 1 - lo
            value = 1 - p["score"] if down else p["score"]
            reference = p["name"] == UNDEFENDED
            made.append(
                charts.Point(
                    p["name"], str(number), p[x], value, lo, hi, p[best], reference, p["ranked"] or reference
                )
            )
        return made

    drawn = [p for p in points if not p["control"]]
    lows = [
        mark.y if mark.lo is None else mark.lo for mark in marks([(0, p) for p in drawn], "score", "best_use")
    ]
    heights = charts.shares(lows)
    if len(usable) >= 3:
        x = charts.shares([p["utility"] for _, p in usable])
        label = f"Security against utility: {len(usable)} defenses; the table below has the numbers."
        x_title = "Clean accuracy" if board["vector"] == "evasion" else "Utility"
        svg = charts.scatter(
            marks(usable, "utility", "best_use"), x, heights, x_title, title, label, size=size
        )
        found.append({"title": f"Security against {x_title.lower()}", "svg": svg})
    priced = [(number, p) for number, p in enumerate(points, start=1) if p["fit"] and not p["control"]]
    if cost and len(priced) >= 3:
        x = charts.seconds([p["fit"] for _, p in priced])
        label = f"Security against cost: {len(priced)} defenses; the table below has the numbers."
        svg = charts.scatter(
            marks(priced, "fit", "best_cost"),
            x,
            heights,
            "Seconds to fit",
            title,
            label,
            cheap=True,
            size=size,
        )
        found.append({"title": "Security against cost", "svg": svg})
    return found


def contributions(board: Summary) -> list[dict[str, Any]]:
    """Return what each attack adds to the worst case of a board, the most first; none with fewer than two attacks."""
    rows = [e for e in board["entries"] if e["alone"] and "control" not in e["tags"]]
    if len(board["attacks"]) < 2 or not rows:
        return []
    found = []
    for attack, known in board["attacks"].items():
        there = [(e["alone"][attack], e["defense"]) for e in rows if attack in e["alone"]]
        if there:
            most, against = max(there)
            found.append(
                {
                    "attack": attack,
                    "slug": known["slug"],
                    "mean": sum(value for value, _ in there) / len(there),
                    "most": most,
                    "against": against if most > 0 else "",
                    "worst_of": sum(e["worst"] == attack for e in rows),
                }
            )
    return sorted(found, key=lambda one: (-one["mean"], one["attack"]))


def _compare(board: Summary, found: Comparison) -> dict[str, Any]:
    entries = [e for e in board["entries"] if e["score"]] if board["score"] else []
    shown = entries[:MOST]
    matrix: list[list[Any]] = [[None] * len(shown) for _ in shown]
    unit = board["score"]["unit"] if board["score"] else ""
    for pair in found.pairs:
        matrix[pair.a][pair.b] = (words.difference(pair.difference, unit), pair.apart)
        matrix[pair.b][pair.a] = (words.difference(-pair.difference, unit), pair.apart)
    is_paired = any(found.held.values())
    return {
        "page": "compare",
        "board": board,
        "entries": shown,
        "cut": len(entries) > MOST,
        "most": MOST,
        "held": found.held_means if is_paired else "",
        "parts": scripted({part: runs(ids) for part, ids in found.parts.items()}),
        "bits": {
            defense: scripted({part: packed(bits) for part, bits in own.items()})
            for defense, own in found.held.items()
        },
        "matrix": matrix,
    }


def _cells(
    table: Table, board: Summary, row: Row, entry: Entry, load: Load, pictures: Mapping[str, bytes]
) -> dict[str, Any]:
    cells = [_cell(cell, board, load, pictures) for cell in row.cells if cell.records]
    return {
        "page": board["vector"],
        "board": board,
        "entry": entry,
        "shard": f"../../{shard_path(board, entry)}",
        "cells": cells,
    }


def _cell(cell: Cell, board: Summary, load: Load, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    seen = examples(board["vector"], [_arrays(r, load) for r in cell.records if r.status == "ok"])
    name = board["attacks"][cell.attack]["slug"]
    binned = seen.histogram if seen else None
    return {
        "attack": cell.attack,
        "slug": name,
        "anchor": anchor(name),
        "problems": cell.problems,
        "examples": seen,
        "bar": charts.stack(seen.outcomes) if seen else "",
        "histogram": charts.histogram(binned.edges, binned.series, "", f"Histogram: {binned.of}")
        if binned
        else "",
        "seeds": [record.seed for record in cell.records],
        "pictures": [
            (record.seed, f"../../{picture_path(record.key)}", png.size(pictures[record.key]))
            for record in cell.records
            if record.key in pictures
        ],
        "table": _side_by_side(cell.records, board["vector"]),
        "commands": [(record.seed, words.command(record)) for record in cell.records],
    }


def _arrays(record: Record, load: Load) -> Mapping[str, NDArray[Any]]:
    try:
        return load(record)
    except Exception:  # the board says of a damaged file what is wrong with it
        return {}


Line = tuple[str, str, list[tuple[str, str]]]  # name, note, and text with an aside by record


def _side_by_side(records: Sequence[Record], vector: str) -> Markup:
    """The figures of some records, one in a column: metrics, the gate's, other figures, cost, and provenance.

    These are most of all letters of a site, so they are put together here and not by a template.
    """
    e = words.escaped
    heads = "".join(f'<th scope="col" class="num">Seed {record.seed}</th>' for record in records)
    parts = [f'<thead><tr><th scope="col">Metric</th>{heads}</tr></thead>']
    groups = {
        "": _metrics(records, vector),
        "What the gate measured": _gate(records),
        "Other figures": _others(records),
        "Cost": _cost(records),
        "Provenance": _provenance(records),
    }
    for title, lines in groups.items():
        if not lines:
            continue
        parts.append("<tbody>")
        if title:
            wide = len(records) + 1
            parts.append(f'<tr><th scope="rowgroup" colspan="{wide}" class="group">{title}</th></tr>')
        for name, note, values in lines:
            beside = f' <small class="muted">{e(note)}</small>' if note else ""
            parts.append(f'<tr><th scope="row">{e(name)}{beside}</th>')
            for text, aside in values:
                more = f'<small class="interval">{e(aside)}</small>' if aside else ""
                parts.append(f'<td class="num">{e(text)}{more}</td>')
            parts.append("</tr>\n")
        parts.append("</tbody>\n")
    return Markup("".join(parts))


def _metrics(records: Sequence[Record], vector: str) -> list[Line]:
    lines: list[Line] = []
    for name in sorted({name for r in records for name in (*r.metrics, *r.unresolved)}):
        values, note = [], ""
        for record in records:
            metric = record.metrics.get(name)
            if metric:
                note = {"higher": "higher is better", "lower": "lower is better"}.get(metric.better, "")
                values.append(
                    (
                        words.number(metric.value, metric.unit),
                        words.interval(metric.lo, metric.hi, metric.unit),
                    )
                )
            elif name in record.unresolved:
                lo, hi = record.unresolved[name]
                values.append(("not resolvable", f"lies in {words.interval(lo, hi, 'share')}"))
            else:
                values.append(("", ""))
        lines.append((words.heading(name, vector), note, values))
    return lines


def _gate(records: Sequence[Record]) -> list[Line]:
    figures = [{one.name: one for one in judged(record.diagnostics)} for record in records]
    lines: list[Line] = []
    for name in dict.fromkeys(name for own in figures for name in own):
        values: list[tuple[str, str]] = [
            (own[name].shown, own[name].verdict if own[name].verdict != "pass" else "")
            if name in own
            else ("", "")
            for own in figures
        ]
        lines.append((name, "", values))
    return lines


def _others(records: Sequence[Record]) -> list[Line]:
    names = sorted({name for record in records for name in record.diagnostics} - LIMITS.keys())
    return [
        (name, "", [(f"{r.diagnostics[name]:.4g}" if name in r.diagnostics else "", "") for r in records])
        for name in names
    ]


def _cost(records: Sequence[Record]) -> list[Line]:
    def line(name: str, values: Sequence[str]) -> Line:
        return name, "", [(value, "") for value in values]

    def took(seconds: float) -> str:
        return f"{seconds:.2f} s" if seconds else "–"

    costs = [record.cost for record in records]
    lines = [line("fit", [took(c.fit_seconds) for c in costs])]
    if any(c.repair_seconds for c in costs):
        lines.append(line("repair", [took(c.repair_seconds) for c in costs]))
    lines += [
        line("craft", [took(c.craft_seconds) for c in costs]),
        line("queries", [f"{c.queries:,}" for c in costs]),
        line("gradients", [f"{c.gradients:,}" for c in costs]),
    ]
    return lines


def _provenance(records: Sequence[Record]) -> list[Line]:
    def line(name: str, values: Sequence[str]) -> Line:
        return name, "", [(value, "") for value in values]

    return [
        line("key", [r.key[:16] for r in records]),
        line("suite", [r.suite for r in records]),
        line("measured", [r.provenance.ended for r in records]),
        line(
            "commit",
            [r.provenance.commit[:12] + (" with changes" if r.provenance.dirty else "") for r in records],
        ),
        line("machine", [f"{r.environment.cpu}, {r.environment.device}" for r in records]),
        line(
            "scored",
            [f"{'blind' if r.isolation.blind else 'not blind'}, {r.isolation.backend}" for r in records],
        ),
    ]

"""What thieves get for so many queries: the boards of one task that differ in nothing but the budget."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.threat import Threat
from firstline.leaderboard import charts, words
from firstline.leaderboard.summary import Summary
from firstline.leaderboard.table import UNDEFENDED

DRAWN = 6  # lines that a chart can tell apart


def budgets(boards: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return what each attack on the undefended system gets at each budget, where there are two budgets or more.

    boards are those of one task; of each group that differs in nothing else: the threat without its budget, the
    budgets, a row for each attack with the numbers there, None where there are none, and a chart of the six attacks that
    get most for the largest budget.
    """
    groups: dict[tuple[Any, ...], dict[int, Summary]] = {}
    for board in boards:
        if board["vector"] == "extraction" and board["score"] and (queries := _queries(board["threat"])):
            head, _, rest = board["threat"].partition(":")
            others = rest.partition(",")[2]
            at = (board["collection"], head, others, board["examples"])
            groups.setdefault(at, {})[queries] = board
    return [_group(at, groups[at]) for at in sorted(groups) if len(groups[at]) > 1]


def _queries(threat: str) -> int | None:
    with suppress(FirstlineError):
        return Threat.parse(threat).queries
    return None


def _group(at: tuple[Any, ...], boards: dict[int, Summary]) -> dict[str, Any]:
    columns = sorted(boards)
    found: dict[str, list[Any]] = {}
    for place, queries in enumerate(columns):
        bare = next((e for e in boards[queries]["entries"] if e["defense"] == UNDEFENDED), None)
        for attack, numbers in (bare["attacks"] if bare else {}).items():
            found.setdefault(attack, [None] * len(columns))[place] = numbers
    rows = {attack: cells for attack, cells in found.items() if sum(cell is not None for cell in cells) > 1}
    best = sorted(rows, key=lambda attack: (-max(c[0] for c in rows[attack] if c), attack))[:DRAWN]
    score = boards[columns[-1]]["score"]
    assert score
    name = words.heading(score["name"])
    lines = [
        charts.Line(attack, [(q, c[0]) for q, c in zip(columns, rows[attack], strict=True) if c], number)
        for number, attack in enumerate(best)
    ]
    x = charts.Axis(columns[0], columns[-1], [(q, f"{q:,}") for q in columns], log=True)
    label = f"{name} of {len(lines)} attacks over the number of queries; the table has the numbers."
    head, others = at[1], at[2]
    return {
        "threat": f"{head}{',' + others if others else ''}",
        "name": name,
        "unit": score["unit"],
        "columns": [(q, boards[q]["id"]) for q in columns],
        "rows": [
            (attack, best.index(attack) if attack in best else None, rows[attack]) for attack in sorted(rows)
        ],
        "svg": charts.lines(lines, x, "queries", label),
    }

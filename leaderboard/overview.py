"""The pages that look across boards, made from their summaries: the overview and the cards."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypedDict

from firstline.benchmark.core.limits import LIMITS
from firstline.leaderboard import charts, words
from firstline.leaderboard.about import About, about
from firstline.leaderboard.boards import Page, contributions, pareto, tests_of, tradeoffs
from firstline.leaderboard.budgets import budgets
from firstline.leaderboard.curves import Curve
from firstline.leaderboard.names import STAGES, TRUST, Cards, facets
from firstline.leaderboard.streams import StreamTable
from firstline.leaderboard.summary import Entry, Numbers, Summary
from firstline.leaderboard.table import BACKDOORS, RANKED_BY, UNDEFENDED, VECTORS

MOST_BOARDS = 60  # of one vector on the overview
MOST_ENTRIES = 400  # on one page of a vector
MOST_CHARTS = 6  # on the overview
MOST_DAYS = 8
MOST_SECTIONS = 40  # boards on the card of an attack

Streams = Sequence[StreamTable]


class Found(TypedDict):
    """What a vector's boards say of a defense at worst: the share withstood, between its limits."""

    value: float
    lo: float | None
    hi: float | None


class Defense(TypedDict):
    """One defense over all boards."""

    defense: str
    slug: str
    family: str
    trust: str
    tags: list[str]
    fit: float | None
    firsts: int
    boards: list[tuple[Summary, Entry]]
    profile: dict[str, Found]


def leaders(board: Summary) -> list[str]:
    """Return the defenses that share the first rank."""
    return [entry["defense"] for entry in board["entries"] if entry["rank"] == 1]


def bare(board: Summary) -> Numbers | None:
    """Return the score of the undefended system, None where there is none."""
    return next((e["score"] for e in board["entries"] if e["defense"] == UNDEFENDED), None)


def lines(boards: Iterable[Summary]) -> list[dict[str, Any]]:
    """Return the boards as lines of an overview: each with its leaders, the first score, and the undefended one."""
    return [
        {
            **board,
            "leaders": leaders(board),
            "lead": next((e["score"] for e in board["entries"] if e["rank"] == 1), None),
            "bare": bare(board),
            "ranked": sum(e["rank"] is not None for e in board["entries"]),
        }
        for board in boards
    ]


def withstood(found: Numbers, better: str) -> Found | None:
    """Return a score as a share that the attacker did not get, None where it is no share or has no direction."""
    value, lo, hi = (found[0] or 0.0), found[1], found[2]
    if not 0 <= value <= 1 or better == "neither":
        return None
    if better == "higher":
        return Found(value=value, lo=lo, hi=hi)
    return Found(value=1 - value, lo=None if hi is None else 1 - hi, hi=None if lo is None else 1 - lo)


def index(boards: Sequence[Summary], streams: Streams) -> dict[str, Any]:
    """Return what the first page shows."""
    by_vector = {v: [b for b in boards if b["vector"] == v] for v in VECTORS}
    there = {vector: own for vector, own in by_vector.items() if own}
    counts = {
        "Tasks": len({b["task"] for b in boards}),
        "Defenses": len({e["defense"] for b in boards for e in b["entries"]}),
        "Attacks": len({a for b in boards for a in b["attacks"]}),
        "Threat models": len({b["threat"] for b in boards}),
        "Records": sum(b["records"] for b in boards),
        "Failed cells": sum(b["failed"] for b in boards),
    }
    return {
        "page": "index",
        "boards": bool(boards),
        "counts": {name: number for name, number in counts.items() if number or name != "Failed cells"},
        "vectors": [(vector, lines(own[:MOST_BOARDS])) for vector, own in there.items()],
        "hidden": {vector: max(0, len(own) - MOST_BOARDS) for vector, own in there.items()},
        "words": {vector: _words(own) for vector, own in there.items()},
        "charts": _charts(there),
        "streams": streams,
        "changes": _changes(boards),
        "failed": [(b, e, f) for b in boards for e in b["entries"] for f in e["failures"]],
    }


def _words(boards: Iterable[Summary]) -> str:
    """What the scores of a vector mean."""
    if (first := next(iter(boards), None)) is None:
        return ""
    if first["vector"] == "evasion":
        return "Score: the share of inputs that are right when clean, and right or refused under every attack. Higher is better."
    scores = {b["score"]["name"]: b["score"] for b in (first, *boards) if b["score"]}
    return " ".join(
        f"{words.heading(name)}: {words.explanation(name, score['unit'], score['better'])}"
        for name, score in sorted(scores.items())
    )


def _charts(by_vector: Mapping[str, Sequence[Summary]]) -> list[dict[str, Any]]:
    """Trade-offs of the boards with most entries, at most two of a vector, each of another task where there are."""
    found = []
    for own in by_vector.values():
        wide = sorted(own, key=_weight)
        tasks: set[str] = set()
        for board in wide:
            points = tradeoffs(board)
            drawn = pareto(board, points, size=(380, 250), cost=False)
            if drawn and board["task"] not in tasks and len(tasks) < 2:
                tasks.add(board["task"])
                best = [p["name"] for p in points if p["best_use"]]
                found.append({"board": board, "svg": drawn[0]["svg"], "best": best})
    return found[:MOST_CHARTS]


def _weight(board: Summary) -> tuple[Any, ...]:
    """What puts a board first on the overview: most entries with a rank, and the attacker who sees most."""
    return (-sum(e["rank"] is not None for e in board["entries"]), board["knowledge"] != "white", board["id"])


def _changes(boards: Sequence[Summary]) -> list[dict[str, Any]]:
    """The newest days on which records were measured, and which defenses were measured for the first time then."""
    records: dict[str, int] = {}
    touched: dict[str, set[str]] = {}
    first: dict[str, tuple[str, str]] = {}
    for board in boards:
        for day, count in board["days"].items():
            records[day] = records.get(day, 0) + count
            touched.setdefault(day, set()).add(board["id"])
        for entry in board["entries"]:
            day = min(row["day"] for row in entry["history"])
            first[entry["defense"]] = min(first.get(entry["defense"], (day, "")), (day, entry["slug"]))
            first[entry["defense"]] = (first[entry["defense"]][0], entry["slug"])
    return [
        {
            "day": day,
            "records": records[day],
            "boards": len(touched[day]),
            "new": sorted((name, slug) for name, (when, slug) in first.items() if when == day),
        }
        for day in islice(sorted(records, reverse=True), MOST_DAYS)
    ]


def vector_pages(boards: Sequence[Summary]) -> Iterator[Page]:
    """Yield the pages of each vector: its boards as cards, in parts that are not too heavy."""
    for vector in VECTORS:
        parts: list[list[dict[str, Any]]] = [[]]
        for board in [_card(board) for board in boards if board["vector"] == vector]:
            size = sum(len(other["entries"]) for other in parts[-1])
            if parts[-1] and size + len(board["entries"]) > MOST_ENTRIES:
                parts.append([])
            parts[-1].append(board)
        names = [vector if number == 1 else f"{vector}-{number}" for number in range(1, len(parts) + 1)]
        for number, (name, part) in enumerate(zip(names, parts, strict=True), start=1):
            if part:
                shared = {"page": vector, "vector": vector, "parts": names, "number": number}
                yield f"{name}.html", "vector.html.j2", {**shared, "boards": part}


def _card(board: Summary) -> dict[str, Any]:
    """A board with the entries that a card shows, the ranked ones, and the tests between these."""
    shown = [{**entry, "index": i} for i, entry in enumerate(board["entries"]) if entry["rank"] is not None]
    kept = {entry["index"] for entry in shown}
    tests = [test for test in board["tests"] if test[0] in kept and test[1] in kept]
    aside = len(board["entries"]) - len(shown)
    return {**board, "shown": shown, "shown_tests": tests_of(tests), "aside": aside}


def defenses(boards: Sequence[Summary]) -> list[Defense]:
    """Return all defenses, by name."""
    found: dict[str, Defense] = {}
    for board in boards:
        for entry in board["entries"]:
            one = found.setdefault(
                entry["defense"],
                Defense(
                    defense=entry["defense"],
                    slug=entry["slug"],
                    family=entry["family"],
                    trust=entry["trust"],
                    tags=entry["tags"],
                    fit=None,
                    firsts=0,
                    boards=[],
                    profile={},
                ),
            )
            one["boards"].append((board, entry))
            one["firsts"] += entry["rank"] == 1
            order = list(TRUST)
            one["trust"] = max(one["trust"], entry["trust"], key=order.index)
            one["fit"] = max((fit for fit in (one["fit"], entry["fit"]) if fit is not None), default=None)
            if entry["score"] and board["score"] and not board["invalid"]:
                value = withstood(entry["score"], board["score"]["better"])
                worst = one["profile"].get(board["vector"])
                if value and (worst is None or value["value"] < worst["value"]):
                    one["profile"][board["vector"]] = value
    return [found[name] for name in sorted(found)]


def defense_page(one: Defense, streams: Streams, cards: Cards) -> dict[str, Any]:
    """Return what the card of a defense shows."""
    profile = []
    for vector in VECTORS:
        rows = [
            {"board": line, "entry": entry, "bare": line["bare"], "strip": _strip(line, entry)}
            for board, entry in one["boards"]
            if board["vector"] == vector
            for line in lines([board])
        ]
        if rows:
            profile.append((vector, rows))
    served = [(t, row) for t in streams for row in t.rows if row.line.defense == one["defense"]]
    last = one["boards"][-1][1]
    return {
        "page": "defenses",
        "one": one,
        "layers": [
            about("defense", layer["name"], layer["settings"], layer["version"], cards)
            for layer in last["layers"]
        ],
        "profile": profile,
        "worst": {vector: found for vector, rows in profile if (found := _worst(rows))},
        "security": _security(one),
        "repairs": [(board, repair) for board, entry in one["boards"] for repair in entry["repairs"]],
        "streams": served,
        "failures": [(board, failure) for board, entry in one["boards"] for failure in entry["failures"]],
        "history": _history(entry for _, entry in one["boards"]),
        "badge": badge(one),
    }


def _worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The board of a vector on which a defense withstood least, None where no score is a share."""
    found = []
    for row in rows:
        board, entry = row["board"], row["entry"]
        if entry["score"] and board["score"] and not board["invalid"]:
            value = withstood(entry["score"], board["score"]["better"])
            if value:
                found.append((value["value"], board["id"], row))
    return {**min(found, key=lambda one: one[:2])[2], "boards": len(rows)} if found else None


def _strip(board: Mapping[str, Any], entry: Entry) -> str:
    if not entry["score"] or not board["score"]:
        return ""
    value = withstood(entry["score"], board["score"]["better"])
    reference = withstood(board["bare"], board["score"]["better"]) if board["bare"] else None
    if value is None:
        return ""
    hollow = reference["value"] if reference and entry["defense"] != UNDEFENDED else None
    return charts.dots([charts.Dot(value["value"], value["lo"], value["hi"], hollow)])


def _security(one: Defense) -> list[dict[str, Any]]:
    """The security curves of a defense, each beside that of the undefended system under the same attack."""
    found = []
    for board, entry in one["boards"]:
        radius = _radius(board["threat"])
        for drawn in entry["curves"]:
            undefended = next(
                (
                    other
                    for e in board["entries"]
                    if e["defense"] == UNDEFENDED
                    for other in e["curves"]
                    if other["attack"] == drawn["attack"]
                ),
                None,
            )
            curve = Curve(tuple(drawn["radii"]), tuple(drawn["left"]))
            series = [charts.Line(entry["defense"], list(zip(curve.radii, curve.left, strict=True)), 0)]
            if undefended and entry["defense"] != UNDEFENDED:
                points = list(zip(undefended["radii"], undefended["left"], strict=True))
                series.append(charts.Line("none", points, 1))
            x = charts.linear(curve.radii[-1])
            label = f"Accuracy left at each distance, with {entry['defense']}; dashed, the undefended system."
            svg = charts.lines(series, x, "distance", words.brief(label), mark=radius, size=(380, 220))
            found.append({"board": board, "attack": drawn["attack"], "svg": svg})
    return found[:8]


def _radius(threat: str) -> float | None:
    from firstline.benchmark.core.errors import FirstlineError
    from firstline.benchmark.core.threat import Threat

    try:
        model = Threat.parse(threat)
    except FirstlineError:
        return None
    return model.eps if model.vector == "evasion" else None


def _history(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    days: dict[tuple[str, str, str], int] = {}
    for entry in entries:
        for row in entry["history"]:
            at = (row["day"], row["versions"], row["firstline"])
            days[at] = days.get(at, 0) + row["records"]
    return [
        {"day": day, "versions": versions, "firstline": firstline, "records": count}
        for (day, versions, firstline), count in sorted(days.items(), reverse=True)[:40]
    ]


def badge(one: Defense) -> str:
    """Return the words of a defense's badge: what it withstood on the board that most attacks ran on, or nothing."""
    found = _badge(one)
    return f"{found[0]}: {found[1]}" if found else ""


def badge_file(one: Defense) -> str | None:
    """Return the badge of a defense as SVG, None where no board ranks it."""
    found = _badge(one)
    return charts.badge(*found) if found else None


def _badge(one: Defense) -> tuple[str, str, int] | None:
    ranked = [(b, e) for b, e in one["boards"] if e["rank"] and e["score"] and b["score"]]
    if not ranked:
        return None
    board, entry = max(
        ranked, key=lambda at: (-VECTORS.index(at[0]["vector"]), len(at[0]["attacks"]), at[0]["id"])
    )
    score, found = board["score"], entry["score"]
    if score is None or found is None:
        return None
    value = withstood(found, score["better"])
    name = "worst case" if board["vector"] == "evasion" else words.heading(score["name"]).lower()
    tied = " (tied)" if entry["tied"] else ""
    text = f"{words.number(found[0] or 0.0, score['unit'])}, rank {entry['rank']}{tied} on {words.brief(board['task'])[:40]}"
    return (
        f"{name}, {facets(board['threat'])['knowledge'] or board['vector']}",
        text,
        words.heat(value["value"]) if value else 4,
    )


def attacks(boards: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return all attacks, by vector and name, with what they add over all boards."""
    found: dict[str, dict[str, Any]] = {}
    adds: dict[str, list[float]] = {}
    for board in boards:
        for one in contributions(board):
            if board["score"] and board["score"]["unit"] in ("share", "area"):
                adds.setdefault(one["attack"], []).append(one["mean"])
        for attack, known in board["attacks"].items():
            entry = found.setdefault(
                attack,
                {
                    "attack": attack,
                    "slug": known["slug"],
                    "name": known["name"],
                    "settings": known["settings"],
                    "vector": board["vector"],
                    "boards": [],
                    "met": 0,
                    "worst": 0,
                    "queries": 0.0,
                },
            )
            candidates = [e for e in board["entries"] if "control" not in e["tags"]]
            entry["boards"].append(board)
            entry["met"] += sum(attack in e["attacks"] for e in candidates)
            entry["worst"] += sum(e["worst"] == attack for e in candidates)
            entry["queries"] = max(entry["queries"], known["queries"])
    for attack, entry in found.items():
        own = adds.get(attack, [])
        entry["adds"] = sum(own) / len(own) if own else None
    return sorted(found.values(), key=lambda one: (VECTORS.index(one["vector"]), one["attack"]))


def attack_page(one: Mapping[str, Any], cards: Cards) -> dict[str, Any]:
    """Return what the card of an attack shows."""
    own = [
        (board, [e for e in board["entries"] if one["attack"] in e["attacks"]])
        for board in one["boards"]
        if board["score"]
    ]
    found: About = about("attack", one["name"], one["settings"], None, cards)
    return {
        "page": "attacks",
        "one": one,
        "about": found,
        "boards": own[:MOST_SECTIONS],
        "more": max(0, len(own) - MOST_SECTIONS),
    }


def tasks(boards: Sequence[Summary], cards: Cards) -> list[dict[str, Any]]:
    """Return all tasks by name, with their boards."""
    found: dict[str, list[Summary]] = {}
    for board in boards:
        found.setdefault(board["task"], []).append(board)
    return [
        {
            "task": task,
            "slug": own[0]["task_slug"],
            "about": about("task", own[0]["task_name"], own[0]["task_settings"], None, cards),
            "boards": lines(own),
            "budgets": budgets(own),
            "defenses": len({e["defense"] for b in own for e in b["entries"]}),
            "records": sum(b["records"] for b in own),
        }
        for task, own in sorted(found.items())
    ]


def rules() -> dict[str, Any]:
    """Return what the page of rules shows."""
    names = {vector: ", else ".join(words.heading(n) for n in by) for vector, by in RANKED_BY.items()}
    poisoning, membership, extraction = names["poisoning"], names["membership"], names["extraction"]
    classes, attributes, updates = (words.heading(name) for name in RANKED_BY["inversion"])
    ranked_by = [
        ("Poisoning", f"lowest {poisoning} over the attacks", "higher"),
        ("Poisoning, backdoor", f"highest {words.heading(BACKDOORS)} over the attacks", "lower"),
        ("Membership", f"highest {membership} over the attacks: the first that the records resolve", "lower"),
        ("Extraction", f"highest {extraction} over the thieves", "lower"),
        ("Inversion of classes", f"highest {classes} over the attacks", "lower"),
        ("Inversion of attributes", f"highest {attributes} over the attacks", "lower"),
        ("Inversion of updates", f"highest {updates} over the attacks", "lower"),
    ]
    return {
        "page": "rules",
        "ranked_by": ranked_by,
        "stages": ["undefended", *STAGES.values()],
        "trust": TRUST,
        "limits": LIMITS,
    }

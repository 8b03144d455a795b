"""firstline show: one registered thing, a suite, a recipe or a record."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from firstline.benchmark.cli.options import RESULTS, Json, Results
from firstline.benchmark.cli.reproduce import is_key
from firstline.benchmark.cli.show_stream import render_stream
from firstline.benchmark.cli.show_text import say, say_json, table
from firstline.benchmark.core import catalog
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.limits import LIMITS, judged
from firstline.benchmark.run import recipe, suite
from firstline.benchmark.run.store import Store

LEVELS = "▁▂▃▄▅▆▇█"
BARS = 40


def show(
    name: Annotated[
        str, typer.Argument(help="A name that `firstline list` prints, or the start of a record's key.")
    ],
    results: Results = RESULTS,
    json: Json = False,
) -> None:
    """Print the card of a task, defense, attack, suite or recipe, or the record of a cell or a stream."""
    found = catalog.load()
    cards = [cards[name] for cards in found.cards.values() if name in cards]
    if cards:
        for card in cards:
            say_json(asdict(card)) if json else say(render_card(card))
    elif name in suite.embedded() or Path(name).suffix == ".toml":
        described = suite.describe(suite.find_suite(name))
        say_json(described) if json else say(_render_suite(described))
    elif name in recipe.embedded():
        paper = recipe.find_recipe(name)
        say_json(asdict(paper)) if json else say(recipe.render(paper))
    elif is_key(name):
        store = Store(results)
        key = store.find(name)
        if store.stream_path(key).exists():
            stream = store.read_stream(key)
            say_json(stream.model_dump(mode="json")) if json else say(render_stream(stream))
        else:
            record = store.read(key)
            say_json(record.model_dump(mode="json")) if json else say(_render_record(record))
    else:
        known = (
            {n for cards in found.cards.values() for n in cards}
            | set(suite.embedded())
            | set(recipe.embedded())
        )
        raise not_found("task, defense, attack, suite or recipe", name, known)


def render_card(card: catalog.Card) -> str:
    """Return a card as text."""
    facts = [[k, _plain(v)] for k, v in card.facts.items()]
    settings = [[s.name, s.type, repr(s.default)] for s in card.settings]
    parts = [
        f"{card.kind} {card.name}, version {card.version}"
        + (f" ({', '.join(card.tags)})" if card.tags else "")
    ]
    parts.append(card.doc)
    parts.append(table(["FACT", ""], facts))
    parts.append(table(["SETTING", "TYPE", "DEFAULT"], settings) if settings else "No settings.")
    parts.append(f"{card.origin}:{card.line}")
    return "\n\n".join(parts) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _render_suite(described: dict[str, Any]) -> str:
    lines = [f"suite {described['name']}, version {described['version']}", "", described["summary"], ""]
    lines.append(
        f"seeds {', '.join(map(str, described['seeds']))}; at most {described['examples']} examples per cell"
    )
    for block in described["matrix"]:
        lines += ["", table(["MATRIX", ""], [[part, ", ".join(texts)] for part, texts in block.items()])]
    return "\n".join(lines) + "\n"


def _render_record(record: Any) -> str:
    from firstline.benchmark.core.record import Record

    if not isinstance(record, Record):
        raise FirstlineError("not a record")
    head = [
        ["key", record.key],
        ["suite", record.suite],
        ["task", record.task.text],
        ["defense", record.defense_text],
        ["attack", record.attack.text],
        ["threat", record.threat],
        ["seed", str(record.seed)],
        ["status", record.status],
    ]
    if record.error:
        head.append(
            [
                "error",
                f"{record.error.kind}, in {record.error.stage}: {record.error.type}: {record.error.message}",
            ]
        )
    head.append(["gate", record.gate.verdict + "".join(f"; {reason}" for reason in record.gate.reasons)])
    head.append(
        [
            "measured",
            f"{record.provenance.ended}, firstline {record.provenance.firstline}, "
            f"commit {record.provenance.commit[:12] or 'unknown'}{' with local changes' if record.provenance.dirty else ''}",
        ]
    )
    head.append(["scored", "blind" if record.isolation.blind else "in the attack's own process"])
    numbers = [
        [
            name,
            f"{m.value:.4f}",
            f"{m.lo:.4f} to {m.hi:.4f}" if m.lo is not None and m.hi is not None else "",
            m.unit,
            f"{m.better} is better" if m.better != "neither" else "",
        ]
        for name, m in sorted(record.metrics.items())
    ]
    numbers += [
        [name, "not resolvable", f"{lo:.4f} to {hi:.4f}", "", "the sample is too small"]
        for name, (lo, hi) in sorted(record.unresolved.items())
    ]
    spent = [[name, f"{value:g}"] for name, value in record.cost.model_dump().items()]
    other = [[k, f"{v:g}"] for k, v in sorted(record.diagnostics.items()) if k not in LIMITS]
    return (
        "\n\n".join(
            [
                table(["RECORD", ""], head),
                table(["METRIC", "VALUE", "95% INTERVAL", "UNIT", ""], numbers),
                *_render_gate(record.diagnostics),
                *_render_curves(record.curves),
                table(["DIAGNOSTIC", ""], other),
                table(["COST", ""], spent),
            ]
        )
        + "\n"
    )


def _render_gate(figures: Mapping[str, float]) -> list[str]:
    """The gate's figures beside their limits, then the names of those that were not measured."""
    rows = judged(figures)
    if not rows:
        return []
    cells = [
        [f"check {row.limit.check}", row.name, row.shown, row.limit.shown(), row.verdict] for row in rows
    ]
    shown = [table(["GATE", "FIGURE", "VALUE", "LIMITS", "VERDICT"], cells)]
    absent = ", ".join(name for name in LIMITS if name not in figures)
    return [*shown, table(["NOT MEASURED"], [[absent]])] if absent else shown


def _render_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    """Each curve by its ends and its shape."""
    rows = [
        [name, *(f"{y:.4f} at {x:g}" for x, y in (points[0], points[-1])), sparkline([y for _, y in points])]
        for name, points in sorted(curves.items())
        if points
    ]
    return [table(["CURVE", "FROM", "TO", "SHAPE"], rows)] if rows else []


def sparkline(values: Sequence[float]) -> str:
    """Return values as bars between 0 and their largest, at most 40 of them, with both ends.

    >>> sparkline([1.0, 0.5, 0.25, 0.0])
    '█▅▃▁'
    """
    count, top = min(len(values), BARS), max(values)
    chosen = [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]
    heights = [max(0.0, value) / top if top > 0 else 0.0 for value in chosen]
    return "".join(LEVELS[round(height * (len(LEVELS) - 1))] for height in heights)

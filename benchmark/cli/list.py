"""firstline list: what is registered."""

from typing import Annotated, Any

import typer

from firstline.benchmark.cli.options import Json
from firstline.benchmark.cli.show_text import count, say, say_json, table
from firstline.benchmark.core import catalog
from firstline.benchmark.core.errors import not_found
from firstline.benchmark.run import recipe, suite

SORTS = ("tasks", "defenses", "attacks", "suites", "recipes")


def list_items(
    what: Annotated[
        str, typer.Argument(help="tasks, defenses, attacks, suites or recipes; all without it.")
    ] = "",
    json: Json = False,
) -> None:
    """List tasks, defenses, attacks, suites and paper recipes, with one line about each."""
    if what and what not in SORTS:
        raise not_found("kind of thing to list", what, SORTS)
    found = catalog.load()
    wanted = {sort: _rows(sort, found) for sort in SORTS if not what or sort == what}
    if json:
        say_json(
            {
                sort: [{"name": n, "about": a, "summary": s} for n, a, s in rows]
                for sort, rows in wanted.items()
            }
        )
        return
    for sort, rows in wanted.items():
        say(table([sort.upper(), "", ""], rows) + "\n" if rows else f"{sort.upper()}\nnone\n")
    for plugin, reason in found.broken.items():
        say(f"plugin {plugin} failed to load: {reason}")
    say(f"`firstline show NAME` prints one of them; {count(len(found.broken), 'broken plugin')}.")


def _rows(sort: str, found: catalog.Catalog) -> list[list[str]]:
    if sort == "suites":
        return [[name, s.version, s.summary] for name in suite.embedded() for s in [suite.find_suite(name)]]
    if sort == "recipes":
        return [[name, r.source, r.title] for name in recipe.embedded() for r in [recipe.find_recipe(name)]]
    cards = found.cards[sort.removesuffix("s")]
    return [[card.name, _about(card), card.summary] for card in cards.values()]


def _about(card: catalog.Card) -> str:
    facts: dict[str, Any] = dict(card.facts)
    if card.kind == "task":
        return f"{facts['modality']}, {facts['classes']} classes"
    if card.kind == "attack":
        return f"{facts['vector']}, needs {', '.join(facts['needs'])}"
    return ", ".join(facts["hooks"]) or "identity"

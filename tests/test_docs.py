"""The docs are true of the code: commands, options, settings, catalogues, links and the import table."""

import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from firstline.benchmark.cli.main import app
from firstline.benchmark.core import catalog
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run.recipe import find_recipe
from firstline.benchmark.run.suite import parse_suite

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") if (ROOT / name).is_file()]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in [*TOP, *DOCS]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, kind, body) for page, text in PAGES.items() for kind, body in FENCE.findall(text)]
COMMANDS = typer.main.get_command(app).commands
KINDS = {"tasks": "task", "defenses": "defense", "attacks": "attack"}


def ours(kind):
    """The cards of what this repository registers: no plugin that happens to be installed."""
    cards = catalog.load().cards[kind].values()
    return {card.name: card for card in cards if card.module.startswith("firstline.")}


def words(cell):
    """What stands between backticks, in order."""
    return re.findall(r"`([^`]+)`", cell)


def rows(text, heading):
    """The rows of the first table below a heading, as dictionaries by column."""
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, cells, strict=True)) for cells in body]


def tables(kind):
    """The TOML blocks of the docs that hold this top-level entry."""
    found = [(page, tomllib.loads(body)) for page, language, body in BLOCKS if language == "toml"]
    return [pytest.param(raw, id=page) for page, raw in found if kind in raw]


def typed():
    """Every firstline command that a console block of the docs shows, without its comment."""
    lines = [(page, line) for page, kind, body in BLOCKS if kind == "console" for line in body.splitlines()]
    return [
        (page, line[2:].split("  #")[0].strip()) for page, line in lines if line.startswith("$ firstline")
    ]


def anchors(path):
    """The anchors that the headings of a page get."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_mentioned(name):
    assert any(f"firstline {name}" in text for text in PAGES.values())


@pytest.mark.parametrize(("page", "line"), typed())
def test_every_command_shown_is_one(page, line):
    name, *args = shlex.split(line)[1:]
    command = COMMANDS[name]
    if hasattr(command, "commands"):
        command, args = command.commands[args[0]], args[1:]
    command.make_context(name, args)  # raises where an option or an argument is not known


@pytest.mark.parametrize("page", KINDS)
def test_the_catalogue_table_holds_what_is_registered(page):
    found = {words(row["name"])[0]: row["version"] for row in rows(PAGES[f"docs/{page}.md"], "Catalogue")}
    assert found == {name: str(card.version) for name, card in ours(KINDS[page]).items()}


@pytest.mark.parametrize("page", KINDS)
def test_the_catalogue_names_every_setting_with_its_default(page):
    section = " ".join(PAGES[f"docs/{page}.md"].split("\n## Catalogue\n")[1].split())
    missing = [
        f"{card.name}: {setting.name}={setting.default!r}"
        for card in ours(KINDS[page]).values()
        for setting in card.settings
        if f"`{setting.name}={setting.default!r}`" not in section
    ]
    assert not missing


def test_the_defenses_table_is_true():
    for row in rows(PAGES["docs/defenses.md"], "Catalogue"):
        card = ours("defense")[words(row["name"])[0]]
        shown = [words(row[column]) for column in ("hooks", "inputs", "tags")]
        assert shown == [card.facts["hooks"], card.facts["inputs"], list(card.tags)], card.name


def test_the_attacks_table_is_true():
    for row in rows(PAGES["docs/attacks.md"], "Catalogue"):
        card = ours("attack")[words(row["name"])[0]]
        assert row["vector"] == card.facts["vector"], card.name
        shown = [words(row[column]) for column in ("needs", "goals", "inputs")]
        assert shown == [card.facts[column] for column in ("needs", "goals", "inputs")], card.name


def test_the_tasks_table_is_true():
    for row in rows(PAGES["docs/tasks.md"], "Catalogue"):
        card = ours("task")[words(row["name"])[0]]
        facts = card.facts
        assert row["modality"] == facts["modality"], card.name
        assert row["classes"] == str(facts["classes"]), card.name
        assert row["shape"] == ", ".join(map(str, facts["shape"])), card.name
        eps = [] if row["eps linf, l2"] == "none" else row["eps linf, l2"].split(", ")
        radii = [Threat.parse(f"evasion/white/{n}:{e}").eps for n, e in zip(facts["eps"], eps, strict=True)]
        assert radii == list(facts["eps"].values()), card.name
        assert ("embedded" in row["data"]) == facts["embedded"], card.name
        assert ("pinned" in row["data"]) == bool(facts["fingerprint"]), card.name


def test_the_import_table_is_the_one_that_is_kept():
    layers = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))["MAY_IMPORT"]
    table = rows(PAGES["docs/architecture.md"], "Who may import whom")
    shown = {words(row["layer"])[0]: set(words(row["may import, besides itself"])) for row in table}
    assert shown == layers


@pytest.mark.parametrize("raw", tables("matrix"))
def test_suites_in_the_docs_are_suites(raw):
    suite = parse_suite(raw, "docs")
    found = catalog.load().cards
    for block in suite.blocks:
        refs = [("task", r) for r in block.tasks] + [("attack", r) for r in block.attacks]
        refs += [("defense", layer) for stack in block.defenses for layer in stack]
        for kind, ref in refs:
            if ref.name.startswith("my-"):  # the reader's own plugin
                continue
            found[kind][ref.name].resolve(ref)  # raises where a setting is not known


@pytest.mark.parametrize("raw", tables("expected"))
def test_recipes_in_the_docs_are_recipes(raw, tmp_path):
    body = next(b for _, k, b in BLOCKS if k == "toml" and tomllib.loads(b) == raw)
    (tmp_path / "recipe.toml").write_text(body, encoding="utf-8")
    assert find_recipe(str(tmp_path / "recipe.toml")).suite.name == raw["suite"]["name"]


def test_threat_models_in_the_docs_are_canonical():
    text = PAGES["docs/threat-models.md"].split("\n## Examples\n")[1].split("\n## ")[0]
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("    ")]
    assert len(shown) > 5
    assert [str(Threat.parse(one)) for one in shown] == shown


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", PAGES[page])
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_no_absolute_path_of_a_machine(page):
    assert not re.findall(r"(?<![\w.…~])/(?:work|root|tmp|home)\b[^\s]*", PAGES[page])


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_lines_are_at_most_110_wide(page):
    wide = [line for line in PAGES[page].splitlines() if len(line) > 110 and not line.startswith("|")]
    assert not wide

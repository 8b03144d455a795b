"""The pages in a real browser, opened from disk: what the script adds, who can use it, and what leaves the page."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstline.leaderboard.site import Collection, build_site
from firstline.leaderboard.table import tables

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
axe = pytest.importorskip("axe_playwright_python.base", reason="needs axe-playwright-python")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic")  # fmt: skip
WIDTHS = {"phone": 360, "tablet": 800, "desktop": 1280}
THEMES = ("light", "dark")
LONG = "hf-images(path='local/cifar10-jpeg75', limit=15000)"  # a name that no phone has room for
HOSTILE = "<img src=x onerror=alert(1)>\u202e{{7*7}}javascript:alert(1)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def bench(bench_of: Callable[[], Any], new_metric_of: Callable[..., Any]) -> Any:
    """Boards of evasion over two tasks and threats, one of membership and one of poisoning, and a hostile name."""
    full, rng = bench_of(), np.random.default_rng(0)
    shares = {"none": 0.1, "trades(beta=6)": 0.62, "mart": 0.6, "jpeg": 0.3, "a+b(k=2)": 0.45, HOSTILE: 0.2}
    for task in ("digits", "adult"):
        for threat in ("evasion/white/linf:0.1", "evasion/black/l2:0.5"):
            for seed in (0, 1):
                for attack in ("pgd(steps=40)", "square"):
                    for defense, share in shares.items():
                        blind = {"isolation": {"blind": defense != "mart", "backend": "process"}}
                        full.add(defense, attack, rng.random(80) < share, seed=seed, task=task, threat=threat, **blind)  # fmt: skip
    for defense, auc in {"none": 0.8, "dp-sgd": 0.55, "early-stopping": 0.56}.items():
        metrics = {
            "auc": new_metric_of(auc, better="lower", unit="area"),
            "test_accuracy": new_metric_of(auc),
        }
        full.add_metrics(defense, "lira", task=LONG, threat="membership/black/scores", metrics=metrics)
    return full


@pytest.fixture(scope="module")
def site(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "board"
    return build_site([Collection("results", bench.records, bench)], out, title=f"ours {HOSTILE}").parent


class Watched:
    """A page, and everything it said on the console or asked of anybody."""

    def __init__(self, page: Any, site: Path) -> None:
        self.page, self.site, self.said, self.asked = page, site, [], []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, name: str, fragment: str = "") -> Any:
        self.page.goto("about:blank")  # the same address with another fragment would not be read again
        self.page.goto(f"{(self.site / name).as_uri()}{fragment}")
        return self.page


@pytest.fixture
def watched(browser: Any, site: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A desktop page that must keep silent and ask nobody but this site."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **getattr(request, "param", {}))
    found = Watched(context.new_page(), site)
    yield found
    context.close()
    assert found.said == []
    assert [url for url in found.asked if not url.startswith((site.as_uri(), "about:"))] == []


def board_of(site: Path, task: str, threat: str, folder: str = "boards") -> str:
    boards = json.loads((site / "index.json").read_text())["boards"]
    (found,) = [board["id"] for board in boards if (board["task"], board["threat"]) == (task, threat)]
    return f"{folder}/{found}.html"


def names(page: Any, table: str = "table.matrix") -> list[str]:
    return [
        text.split("\n")[0]
        for text in page.locator(f"{table} tbody tr:visible th.name .defense").all_inner_texts()
    ]


def places(page: Any, table: str = "table.matrix") -> dict[str, int]:
    rows = page.locator(f"{table} tbody tr[data-ranked]:visible").all()
    return {row.locator(".defense").inner_text(): int(row.locator(".place").inner_text()) for row in rows}


EVASION = ("digits", "evasion/white/linf:0.1")
PAGES = ("index", "evasion", "defenses", "attacks", "tasks", "compare", "data", "rules", "about", "board", "cells", "pairs", "defense", "private", "attack", "task")  # fmt: skip
MAIN = ("index", "evasion", "board", "pairs", "private")


def path_of(site: Path, page: str) -> str:
    board = board_of(site, *EVASION)
    one = Path(board).stem
    found = {
        "board": lambda: board,
        "pairs": lambda: f"compare/{one}.html",
        "cells": lambda: str(next((site / "cells" / one).glob("trades*.html")).relative_to(site)),
        "defense": lambda: str(next((site / "defenses").glob("trades*.html")).relative_to(site)),
        "private": lambda: str(next((site / "defenses").glob("dp-sgd*.html")).relative_to(site)),
        "attack": lambda: str(next((site / "attacks").glob("pgd*.html")).relative_to(site)),
        "task": lambda: str(next((site / "tasks").glob("digits*.html")).relative_to(site)),
    }
    return found[page]() if page in found else f"{page}.html"


@pytest.mark.parametrize(
    ("width", "theme", "chosen"),
    [
        pytest.param(width, theme, chosen, id=f"{name}-{theme}-{len(chosen)}", marks=marks)
        for name, width in WIDTHS.items()
        for theme in THEMES
        # All pages once, and at the other widths and in the dark those that differ most; the rest takes minutes.
        for chosen, marks in (
            [(PAGES, ())]
            if (name, theme) == ("desktop", "light")
            else [(MAIN, ()), (PAGES, pytest.mark.slow)]
        )
    ],
)
def test_every_page_fits_its_window_and_is_accessible(browser, site, width, theme, chosen):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    watch = Watched(context.new_page(), site)
    source = Path(axe.__file__).with_name("axe.min.js").read_text()
    wrong = []
    for name in chosen:
        page = watch.open(path_of(site, name))
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            wrong.append((name, f"{wide} wide"))
        page.evaluate(source)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations'], preload: false})")[
            "violations"
        ]
        wrong += [
            (name, one["id"], one["impact"], one["nodes"][0]["html"][:200])
            for one in found
            if one["impact"] in ("serious", "critical", "moderate")
        ]
    context.close()
    assert wrong == []
    assert watch.said == []
    assert [url for url in watch.asked if not url.startswith((site.as_uri(), "about:"))] == []


@pytest.mark.parametrize("watched", [{"java_script_enabled": False}], indirect=True, ids=["no script"])
def test_without_javascript_every_table_is_there_and_nothing_promises_more(watched, bench, site):
    page = watched.open(board_of(site, *EVASION))
    table = next(t for t in tables(bench.records, bench) if (t.task, t.threat) == EVASION)
    assert len(names(page)) == len(table.rows)
    assert page.locator("button, select, input").count() == 0
    page = watched.open(board_of(site, *EVASION, "compare"))
    assert page.locator("table.pairs tbody tr").count() == len(table.rows)
    assert page.locator(".picker").is_hidden()


def test_a_click_sorts_a_column_and_another_turns_it_round(watched, site):
    page = watched.open(board_of(site, *EVASION))
    head = page.locator("table.matrix thead th", has_text="Defense")
    assert head.get_attribute("aria-sort") is None
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    up = names(page)
    assert up == sorted(up, key=str.lower)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert names(page) == up[::-1]
    page.locator("table.matrix thead th", has_text="Clean accuracy").get_by_role("button").click()
    assert page.locator("table.matrix [aria-sort]").count() == 1


def test_sorting_works_from_the_keyboard(watched, site):
    page = watched.open(board_of(site, *EVASION))
    page.locator("table.matrix thead th", has_text="Worst case").get_by_role("button").focus()
    page.keyboard.press("Enter")
    head = page.locator("table.matrix thead th", has_text="Worst case")
    assert head.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"


def test_the_first_stop_of_the_keyboard_skips_to_the_content(watched):
    page = watched.open("index.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["width"] > 20
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")


def test_the_address_holds_the_state_and_restores_it(watched, site):
    page = watched.open(board_of(site, *EVASION))
    page.get_by_label("Trust").select_option("blind")
    page.locator("table.matrix thead th", has_text="Defense").get_by_role("button").click()
    address, shown = page.url, names(page)
    assert "trust=blind" in address
    again = watched.open(board_of(site, *EVASION), address[address.index("#") :])
    assert names(again) == shown
    assert again.get_by_label("Trust").input_value() == "blind"


@pytest.mark.parametrize(
    "fragment", ["#?sort=9.9.up&task=nothing", "#?sort=__proto__&trust=%00", "#?with=x", "#?%ff"]
)
def test_an_address_that_makes_no_sense_shows_everything(watched, site, fragment):
    whole = names(watched.open(board_of(site, *EVASION)))
    assert names(watched.open(board_of(site, *EVASION), fragment)) == whole


def test_ranks_among_the_filtered_are_those_of_a_table_of_them_alone(watched, bench, site):
    page = watched.open(board_of(site, *EVASION))
    every = places(page)
    page.get_by_label("Trust").select_option("blind")
    kept = [record for record in bench.records if record.isolation.blind]
    table = next(t for t in tables(kept, bench) if (t.task, t.threat) == EVASION)
    wanted = {row.defense: row.place.rank for row in table.rows if row.place}
    found = places(page)
    assert {name: rank for name, rank in found.items() if name in wanted} == {
        name: rank for name, rank in wanted.items() if name in found
    }
    assert len(found) == len(wanted)
    assert "ranks are among these" in page.locator(".filters output").inner_text()
    page.get_by_role("button", name="Show all").click()
    assert places(page) == every


def test_ranks_by_overlapping_intervals_are_made_anew_too(watched, bench, site):
    page = watched.open(board_of(site, LONG, "membership/black/scores"))
    table = next(t for t in tables(bench.records, bench) if t.vector == "membership")
    assert places(page) == {row.defense: row.place.rank for row in table.rows if row.place}


def test_filters_of_the_overview_leave_the_boards_that_fit(watched):
    page = watched.open("index.html")
    page.get_by_label("Knowledge").select_option("white")
    rows = page.locator("table.boards tbody tr:visible")
    assert rows.count() == 2
    page.get_by_label("Task").select_option("adult")
    assert rows.count() == 1
    assert "2" not in page.locator(".filters output").inner_text().split(" of ")[0]
    page.get_by_role("button", name="Show all").click()
    assert rows.count() == 5


def test_two_entries_are_compared_example_by_example(watched, bench, site):
    page = watched.open(board_of(site, *EVASION, "compare"))
    while page.locator("#picker input:checked").count():
        page.locator("#picker input:checked").first.uncheck()
    page.get_by_label("trades(beta=6)").check()
    page.get_by_label("jpeg", exact=True).check()
    systems = next(t for t in tables(bench.records, bench) if (t.task, t.threat) == EVASION).systems
    first, second = (
        np.concatenate([systems[name][seed].held for seed in (0, 1)]) for name in ("trades(beta=6)", "jpeg")
    )
    row = page.locator("#comparison table").nth(1).locator("tbody tr").inner_text().split("\t")
    assert row[1] == "160"
    assert (int(row[5]), int(row[6])) == (int((first & ~second).sum()), int((second & ~first).sum()))
    assert row[8].strip() == "yes"
    summary = page.locator("#comparison summary", has_text="Only trades(beta=6) holds")
    assert summary.inner_text().endswith(f": {int((first & ~second).sum())}")
    summary.click()
    ids = page.locator("#comparison details[open] li").first.inner_text().removeprefix("seed 0: ")
    held = [systems[name][0].held for name in ("trades(beta=6)", "jpeg")]
    assert [int(one) for one in ids.split(", ")] == np.flatnonzero(held[0] & ~held[1]).tolist()
    assert "with=" in page.url
    chosen = watched.open(board_of(site, *EVASION, "compare"), page.url[page.url.index("#") :])
    assert chosen.locator("#picker input:checked").count() == 2


def test_the_theme_can_be_chosen_and_stays_for_the_next_page(watched, site):
    page = watched.open("index.html")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    button = page.get_by_role("button", name="Theme")
    button.click()
    assert page.evaluate(paper) == light
    button.click()
    dark = page.evaluate(paper)
    assert dark != light
    assert watched.open("rules.html").evaluate(paper) == dark


def test_hostile_text_is_only_text_in_a_browser(watched, site):
    for path in sorted(site.rglob("*.html")):
        page = watched.open(str(path.relative_to(site)))
        assert page.evaluate("[...document.images].every((one) => one.src.endsWith('.svg'))")
        hrefs = page.evaluate("[...document.links].map((one) => one.protocol)")
        assert set(hrefs) <= {"file:", "https:"}
    assert page.evaluate("document.querySelectorAll('[onerror], iframe, object, embed').length") == 0


def test_a_page_can_not_be_made_to_run_or_load_anything_else(browser, site):
    context = browser.new_context()
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          const image = document.createElement("img");
          image.src = "https://example.org/x.png";
          document.body.append(image);
          document.body.insertAdjacentHTML("beforeend", "<p style='color:red' onclick='window.ran = true'>x</p>");
          document.body.lastElementChild.click();
        }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in text for text in refused) >= 3
    context.close()

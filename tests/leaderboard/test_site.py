"""The pages: the same for the same records, whole, and dead whatever the records say."""

import csv
import hashlib
import io
import itertools
import json
import random
import re
import shlex
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

from firstline.benchmark.core import png
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import ItemUse
from firstline.leaderboard import words
from firstline.leaderboard.site import Collection, build, build_site, environment
from firstline.leaderboard.table import tables

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'"
)
SLUG = r"([a-z0-9-]*-)?[0-9a-f]{8}"
OURS = re.compile(
    r"#[a-z0-9-]+"
    r"|(\.\./)*((index|defenses|attacks|tasks|compare|data|rules|about|streams|papers"
    r"|(evasion|poisoning|membership|extraction|inversion)(-\d+)?)\.html"
    rf"|(boards|defenses|attacks|tasks|compare|papers|cells/{SLUG})/{SLUG}\.html"
    rf"|records/{SLUG}/{SLUG}\.jsonl|records/streams/[0-9a-f]{{64}}\.json|data/boards/{SLUG}\.(csv|json)"
    r"|data/(records\.(csv|parquet)|record\.schema\.json|citations\.bib)|index\.json|SHA256SUMS"
    rf"|badges/{SLUG}\.svg|static/(style|site)\.[0-9a-f]{{8}}\.(css|js))(#[a-z0-9-]+)?"
    r"|https://(arxiv\.org/abs|doi\.org)/[A-Za-z0-9./()_-]+"
)
HARMLESS = re.compile(
    "html|head|meta|title|link|script|body|header|nav|main|section|article|footer|h1|h2|h3|p|a|ul|li|dl|div|dt|dd"
    "|span|details|summary|table|caption|thead|tbody|tr|th|td|small|strong|em|code|pre|br|wbr|abbr|img"
    "|figure|figcaption|svg|g|rect|line|polyline|path|circle|text"
)
UNSEEN = re.compile("[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
HOSTILE = {
    "formula": '=HYPERLINK("http://example.org";"x")',
    "hidden formula": "\t@SUM(1)",
    "script": "<script>alert(1)</script>",
    "link": "javascript:alert(1)",
    "attribute": '"><img src=x onerror=alert(1)>',
    "single quotes": "'><svg onload=alert(1)>",
    "template": "{{ 7 * 7 }}{% include 'x' %}",
    "bidi": "safe\u202egnp.exe\u2066\u200b",
    "long": "x" * 10_000,
    "lines": "a\r\n\u2028b\u0000\x1b[31m",
    "option": "--help",
    "path": "../../outside",
}


class Page(HTMLParser):
    """What a browser would act on, and the text that a reader would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pages(folder):
    found = sorted(folder.rglob("*.html"))
    return {str(path.relative_to(folder)): Page(path.read_text(encoding="utf-8")) for path in found}


def lines_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def text_of(folder, name):
    """The text of all pages of a folder of the site, on one line."""
    found = [page.text for path, page in pages(folder).items() if path.startswith(name)]
    assert found
    return " ".join(" ".join(found).split())


@pytest.fixture
def rich(bench, new, new_failed, new_metric):
    """Every vector, several seeds, and everything that can be wrong with a row."""
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        for attack in ("pgd(steps=40, loss='ce')", "square"):
            for defense, share in {"none": 0.02, "trades(beta=6)": 0.5, "a+b(k=2)": 0.45}.items():
                bench.add(defense, attack, rng.random(60) < share, seed=seed)
        bench.add("masked", "square", rng.random(60) < 0.9, seed=seed, gate="fail", tags=["broken"])
        metrics = {"accuracy": new_metric(0.9), "accuracy_drop": new_metric(0.05, better="lower")}
        bench.records.append(
            new("none", "flip", seed, threat="poisoning/gray/availability:10%", metrics=metrics)
        )
        metrics = {"auc": new_metric(0.7, better="lower", unit="area")}
        bench.records.append(new("none", "lira", seed, threat="membership/black/scores", metrics=metrics))
    bench.records.append(new_failed("masked", "pgd(steps=40, loss='ce')"))
    bench.put(new("unread", "square"), FirstlineError("results/unread.npz is not there"))
    metrics = {"fidelity": new_metric(0.9, better="lower")}
    bench.records.append(new("none", "knockoff", threat="extraction/black/scores:10k", metrics=metrics))
    return bench


def test_a_site_has_an_overview_and_a_page_for_each_vector_board_and_item(rich, tmp_path):
    index = build(rich.records, rich, tmp_path / "board", title="first board")
    assert index == tmp_path / "board" / "index.html"
    found = pages(index.parent)
    top = {name for name in found if "/" not in name}
    vectors = ("evasion", "poisoning", "membership", "extraction")
    others = ("index", "defenses", "attacks", "tasks", "compare", "data", "rules", "about")
    assert top == {f"{name}.html" for name in (*vectors, *others)}
    folders = [name.partition("/")[0] for name in found if "/" in name]
    counted = {folder: folders.count(folder) for folder in set(folders)}
    assert counted == {"boards": 4, "compare": 4, "defenses": 5, "attacks": 5, "tasks": 1, "cells": 8}
    assert "first board" in found["index.html"].text


def test_any_order_of_records_gives_the_same_bytes(rich, tmp_path):
    build(rich.records, rich, tmp_path / "straight", title="board")
    for seed in range(3):
        random.Random(seed).shuffle(rich.records)
        build([*rich.records, rich.records[0]], rich, tmp_path / "shuffled", title="board")
        assert contents(tmp_path / "shuffled") == contents(tmp_path / "straight")


def test_every_link_on_every_page_leads_somewhere_in_the_site(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board", title="board").parent
    found = pages(out)
    ids = {name: {v for _, n, v in page.attributes if n == "id"} for name, page in found.items()}
    for name, page in found.items():
        for link in [value for _, attribute, value in page.attributes if attribute in ("href", "src")]:
            file, _, fragment = link.partition("#")
            target = (out / name).parent / file if file else out / name
            assert target.is_file(), (name, link)
            if fragment:
                assert fragment in ids[str(target.resolve().relative_to(out.resolve()))], (name, link)


def test_no_id_occurs_twice_on_a_page(rich, tmp_path):
    for name, page in pages(build(rich.records, rich, tmp_path / "board").parent).items():
        ids = [value for _, attribute, value in page.attributes if attribute == "id"]
        assert len(ids) == len(set(ids)), name


def test_every_record_is_there_and_linked_and_can_be_run_again(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board", title="board").parent
    found = pages(out)
    text = "\n".join(page.text for page in found.values())
    lines = {
        line: str(path.relative_to(out))
        for path in out.glob("records/*/*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    links = {value for page in found.values() for _, name, value in page.attributes if name == "href"}
    for record in rich.records:
        shard = lines[record.to_json().removesuffix("\n")]
        assert f"../../{shard}" in links
        command = words.command(record)
        assert command in text
        assert shlex.split(command) == ["firstline", "reproduce", record.key[:16]]
    assert len(lines) == len(rich.records)


def test_the_index_leads_to_the_ranks_and_scores_of_each_board(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board", title="board").parent
    index = json.loads((out / "index.json").read_text(encoding="utf-8"))
    assert sum(board["records"] for board in index["boards"]) == len(rich.records)
    made = {(t.task, t.threat): t for t in tables(rich.records, rich)}
    for line in index["boards"]:
        board = json.loads((out / line["path"]).read_text(encoding="utf-8"))["board"]
        table = made[line["task"], line["threat"]]
        assert [entry["defense"] for entry in board["entries"]] == [row.defense for row in table.rows]
        for entry, row in zip(board["entries"], table.rows, strict=True):
            assert entry["rank"] == (row.place.rank if row.place else None)
            assert entry["score"] == (list(row.score) if row.score else None)


def test_the_checksums_are_those_of_all_files(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board").parent
    lines = (out / "SHA256SUMS").read_text().splitlines()
    sums = {name: sha for sha, name in (line.split("  ", 1) for line in lines)}
    found = {name: hashlib.sha256(data).hexdigest() for name, data in contents(out).items()}
    assert sums == {name: sha for name, sha in found.items() if name != "SHA256SUMS"}


def test_the_downloads_hold_every_number(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board").parent
    wanted = sorted((r.key, name, m.value) for r in rich.records for name, m in r.metrics.items())
    found = pq.read_table(out / "data" / "records.parquet").to_pylist()
    assert sorted((r["key"], r["metric"], r["value"]) for r in found if r["metric"]) == wanted
    by_board = [line for path in out.glob("data/boards/*.csv") for line in lines_of(path)]
    for lines in (lines_of(out / "data" / "records.csv"), by_board):
        assert {line["key"] for line in lines} == {record.key for record in rich.records}
        values = [(line, name) for line in lines for name in line if line[name] and f"{name}.lo" in line]
        assert sorted((line["key"], name, float(line[name])) for line, name in values) == wanted


def test_a_second_build_of_the_same_records_writes_nothing_anew(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board").parent
    before = {name: (out / name).stat().st_ino for name in contents(out)}

    def unused(record):
        raise AssertionError(record)

    build(rich.records, unused, tmp_path / "board")  # the outcomes are not read again
    after = {name: (out / name).stat().st_ino for name in contents(out)}
    assert {name for name in after if after[name] != before[name]} <= {"SHA256SUMS"}


def test_one_new_record_gives_what_a_build_from_nothing_gives_and_leaves_other_boards_alone(
    rich, new, new_metric, tmp_path
):
    out = build(rich.records, rich, tmp_path / "board").parent
    before = {name: (out / name).stat().st_ino for name in contents(out)}
    metrics = {"auc": new_metric(0.6, better="lower", unit="area")}
    added = new("dp-sgd", "lira", 0, threat="membership/black/scores", metrics=metrics)
    build([*rich.records, added], rich, tmp_path / "board")
    build([*rich.records, added], rich, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
    kept = [name for name in contents(out) if before.get(name) == (out / name).stat().st_ino]
    assert {name for name in before if "evasion-white" in name} <= set(kept)
    anew = {name.partition("/")[0] for name in set(contents(out)) - set(kept) if "/" in name}
    assert anew <= {"boards", "compare", "cells", "records", "data", "defenses", "attacks", "tasks", "badges"}


def test_a_page_that_was_changed_by_hand_is_mended(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board").parent
    before = contents(out)
    for path in (*out.glob("boards/*.html"), out / "index.html"):
        path.write_text("changed")
    next(out.glob("cells/*/*.html")).unlink()
    build(rich.records, rich, tmp_path / "board")
    assert contents(out) == before


def test_tables_are_marked_up_for_those_who_listen_to_them(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board", title="board").parent
    for page in pages(out).values():
        headers = page.tags.count("th")
        assert sum(name == "scope" for tag, name, _ in page.attributes if tag == "th") == headers
        assert page.tags.count("caption") == page.tags.count("table")
        assert ("html", "lang", "en") in page.attributes
    assert "Higher is better" in pages(out)["evasion.html"].text
    assert "Lower is better" in pages(out)["membership.html"].text


def test_headings_go_down_a_step_at_a_time(rich, tmp_path):
    for name, page in pages(build(rich.records, rich, tmp_path / "board").parent).items():
        levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1, name
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), name


def test_a_row_without_a_rank_says_why(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board", title="board").parent
    text = text_of(out, "boards/")
    assert "RuntimeError: boom (the attack, at stage craft)" in text
    assert "results/unread.npz is not there" in text
    assert "gate failed: steps: more steps still help" in text
    assert "incomplete: no record for seed 1" in text


def test_without_records_the_page_says_so_and_how_to_get_some(tmp_path):
    def unused(record):
        raise AssertionError(record)

    out = build([], unused, tmp_path / "board", title="board").parent
    assert set(pages(out)) == {"index.html", "data.html", "rules.html", "about.html"}
    assert "no record yet" in pages(out)["index.html"].text
    assert "firstline run" in pages(out)["index.html"].text


@pytest.fixture
def gated(bench):
    """Two defenses with figures of the gate over two seeds, and a minimal-norm attack with its curves."""
    curve = [(radius / 10, 1 - radius / 4) for radius in range(5)]
    for seed in (0, 1):
        bench.add("none", "ddn", [True, False], seed=seed, curves={"robust_accuracy": curve})
        gain = {"black_box_gain": 0.01 + 0.03 * seed, "gradient_cosine": 0.9 - 0.3 * seed}
        bench.add("trades", "ddn", [True, True], seed=seed, diagnostics=gain)
    return bench


def test_the_gate_shows_each_figure_with_its_limits_and_its_worst_value(gated, tmp_path):
    text = text_of(build(gated.records, gated, tmp_path / "board", title="board").parent, "boards/")
    assert "1 black_box_gain … of the examples break under random search" in text
    assert "warn > 2.0%, fail > 5.0% 4.0% warn not measured" in text
    assert "warn < 0.50, fail < 0.20 0.60 not measured" in text
    assert "noise_gain" not in text


def test_a_security_curve_is_drawn_and_given_in_numbers(gated, tmp_path):
    out = build(gated.records, gated, tmp_path / "board", title="board").parent
    page = Page(next(out.glob("boards/*.html")).read_text())
    drawn = [value for tag, name, value in page.attributes if (tag, name) == ("polyline", "points")]
    assert drawn == ["0.0,0.0 40.0,12.0 80.0,24.0 120.0,36.0 160.0,48.0"]
    text = " ".join(page.text.split())
    assert "0 0.05 0.1 the threat 0.2 0.4 Area" in text
    assert "100.0% 100.0% 75.0% 50.0% 0.0%" in text


def test_what_detectors_and_monitors_tell_apart_is_a_table_of_its_own(bench, new_metric, tmp_path):
    found = {"detection_auc": new_metric(0.8), "queries_until_flagged": new_metric(4, unit="queries")}
    bench.add("mahalanobis", "pgd", [True, False], metrics=found)
    text = text_of(build(bench.records, bench, tmp_path / "board", title="board").parent, "boards/")
    assert "Detection Suspect are inputs that an attack moved" in text
    assert "mahalanobis pgd 80.0%78.0–82.0% 44–4" in text  # the value and its limits, 4 to 4


def test_what_inversion_rebuilt_is_shown_and_what_is_no_picture_is_not(bench, new_metric, tmp_path):
    for seed in range(4):
        bench.add_metrics(
            "none",
            "mi-face",
            seed,
            threat="inversion/white/classes",
            metrics={"evaluator_accuracy": new_metric(0.5)},
        )
    shown, script, heavy, missing = bench.records
    whole = png.png(np.zeros((6, 4, 1), np.uint8))
    given = {
        shown.key: whole,
        script.key: b"<svg onload='alert(1)'/>" * 9,
        heavy.key: whole + bytes(1_000_001),
    }
    one = lambda: [Collection("results", bench.records, bench, picture=lambda r: given.get(r.key))]  # noqa: E731
    out = build_site(one(), tmp_path / "site").parent
    assert [p.name for p in (out / "pictures").iterdir()] == [f"{shown.key}.png"]
    assert (out / "pictures" / f"{shown.key}.png").read_bytes() == whole
    page = next((out / "cells").rglob("*.html")).read_text()
    assert page.count("<img") == 1
    assert f'<img src="../../pictures/{shown.key}.png" width="4" height="6"' in page
    given[missing.key] = whole  # another picture of the same records is not missed
    build_site(one(), out)
    assert len(list((out / "pictures").iterdir())) == 2


def test_boards_that_differ_in_their_budget_are_drawn_over_it(bench, new_metric, tmp_path):
    got = {
        100: {"retraining": 0.4, "own-labels": 0.3},
        400: {"retraining": 0.6, "own-labels": 0.45},
        1600: {"retraining": 0.7},
    }
    for queries, values in got.items():
        for defense in ("none", "top-k"):
            for attack, value in values.items():
                shown = value if defense == "none" else 0.123
                bench.add_metrics(
                    defense,
                    attack,
                    threat=f"extraction/black/scores:{queries},aux=yes",
                    metrics={"agreement": new_metric(shown, better="lower")},
                )
    bench.add_metrics(
        "none", "retraining", threat="extraction/black/labels:100", metrics={"agreement": new_metric(0.2)}
    )
    out = build(bench.records, bench, tmp_path / "site").parent
    (page,) = (path.read_text() for path in (out / "tasks").glob("*.html"))
    assert page.count("Agreement over queries") == 1  # a single budget is no curve
    part = page[page.index("Agreement over queries") :]
    assert [text for text in ("40.0%", "60.0%", "70.0%", "45.0%") if text not in part] == []
    assert "12.3%" not in part
    assert part.count('class="series') == 2
    body = part[part.index("<tbody>") :]
    assert body.index("own-labels") < body.index("retraining")
    assert part.count("<tr>") == 3


def test_without_figures_and_curves_neither_is_mentioned(rich, tmp_path):
    text = text_of(build(rich.records, rich, tmp_path / "board", title="board").parent, "boards/")
    assert "What the gate measured" not in text
    assert "Security curves" not in text
    assert "Suspect are inputs" not in text


def hostile(record, text, new_metric):
    """The record with text in every field that may hold any text."""
    data = record.model_dump()
    item = {"text": text, "name": text, "version": 1, "settings": {text: text}, "code": text}
    measure = new_metric(0.5).model_dump() | {"method": text, "unit": text}
    data |= {
        "suite": text,
        "task": item,
        "defense": [item, item],
        "attack": item,
        "threat": f"{data['vector']}/{text}",
    }
    data |= {"tags": [text], "stages": {text: text}, "preimage": {text: text}, "curves": {text: [(0.0, 1.0)]}}
    data |= {"metrics": {text: measure, "accuracy": measure, "auc": measure}}
    data |= {"diagnostics": {text: 1.0, "blind_gap": 1.0}}
    data |= {"gate": {"verdict": "fail", "reasons": [text]}, "isolation": {"blind": True, "backend": text}}
    data |= {"outcomes": {"path": text, "sha256": text, "columns": [text]}}
    data["environment"] |= {"platform": text, "cpu": text, "packages": {text: text}}
    data["provenance"] |= {"commit": text, "firstline": text}
    if data["status"] == "failed":
        data["error"] |= {"type": text, "message": text, "stage": text}
        data["metrics"] = {}
    return type(record).model_validate(data)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_in_every_field_stays_text(
    text, bench, new, new_failed, new_metric, new_stream, tmp_path
):
    threats = (
        "evasion/white/linf:0.1",
        "poisoning/gray/backdoor:1%",
        "membership/black/scores",
        "inversion/black/classes",
    )
    for threat in threats:
        bench.put(hostile(new(threat=threat), text, new_metric), FirstlineError(text))
        bench.put(hostile(new_failed(threat=threat, seed=1), text, new_metric), FirstlineError(text))
    good = {name: np.ones(9, np.int64) for name in ("label", "clean_answer", "adversarial_answer")}
    bench.put(hostile(new(seed=2), text, new_metric), good | {"ids": np.arange(9)})
    item = ItemUse(text=text, name=text, version=1, settings={text: text}, code=text)
    stream = new_stream(text, task=item, attack=item, threat=f"evasion/{text}", tags=[text])
    out = build(bench.records, bench, tmp_path / "board", title=text, streams=[stream]).parent
    for path in out.rglob("*.html"):
        raw = path.read_text(encoding="utf-8")
        page = Page(raw)
        assert [tag for tag in page.tags if not HARMLESS.fullmatch(tag)] == []
        assert not [
            name for _, name, _ in page.attributes if name.startswith("on") or name in ("style", "srcdoc")
        ]
        links = [
            value for _, name, value in page.attributes if name in ("href", "src", "xlink:href", "action")
        ]
        assert [link for link in links if not OURS.fullmatch(link)] == []
        assert page.tags.count("script") == 1
        assert ("meta", "content", POLICY) in page.attributes
        assert not UNSEEN.search(raw)
        assert len(raw) < 200_000
    for name in contents(out):
        assert re.fullmatch(r"[A-Za-z0-9./-]+", name)
        assert ".." not in name
    for path in out.glob("badges/*.svg"):
        ElementTree.fromstring(path.read_text(encoding="utf-8"))
    for path in (*out.glob("data/*.csv"), *out.glob("data/boards/*.csv")):
        cells = [cell for line in csv.reader(io.StringIO(path.read_text("utf-8"))) for cell in line]
        assert not [cell for cell in cells if cell.startswith(FORMULA) and not is_number(cell)]


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_a_template_that_forgets_every_filter_prints_escaped_and_visible_text():
    page = environment().from_string("<p>{{ text }}</p>").render(text="<b>\u202e" + "x" * 10_000)
    assert page.startswith("<p>&lt;b&gt;\\u202exxx")
    assert len(page) < 1_100


def test_the_command_of_a_record_holds_nothing_but_its_key(new):
    record = new(suite="$(reboot); `reboot` 'x'")
    assert words.command(record) == f"firstline reproduce {record.key[:16]}"

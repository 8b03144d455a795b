"""The pages: the same for the same records, whole, and dead whatever the records say."""

import json
import random
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import ItemUse
from firstline.leaderboard import words
from firstline.leaderboard.site import build, environment

POLICY = "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
OURS = re.compile(
    r"#(main|t-[0-9a-f]{12})"
    r"|(index|evasion|poisoning|membership|extraction|inversion|streams)\.html(#t-[0-9a-f]{12})?"
    r"|(records|streams)/[0-9a-f]{64}\.json|records\.json|static/style\.css"
)
HARMLESS = re.compile(
    "html|head|meta|title|link|body|header|nav|main|section|article|footer|h1|h2|h3|p|a|ul|li|dl|div|dt|dd|span"
    "|details|summary|table|caption|thead|tbody|tr|th|td|small|strong|code|pre|br|wbr|svg|rect|line|polyline"
)
UNSEEN = re.compile("[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
HOSTILE = {
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
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in folder.glob("*.html")}


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


def test_a_site_has_a_page_for_each_vector_that_there_is(rich, tmp_path):
    index = build(rich.records, rich, tmp_path / "board", title="first board")
    assert index == tmp_path / "board" / "index.html"
    assert set(pages(index.parent)) == {
        f"{p}.html" for p in ("index", "evasion", "poisoning", "membership", "extraction")
    }
    assert "first board" in pages(index.parent)["index.html"].text


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
            assert (out / (file or name)).is_file()
            assert not fragment or fragment in ids[file or name]


def test_every_record_is_copied_and_linked_and_can_be_run_again(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board", title="board").parent
    text = "\n".join(page.text for page in pages(out).values())
    links = {value for page in pages(out).values() for _, name, value in page.attributes if name == "href"}
    for record in rich.records:
        assert (out / "records" / f"{record.key}.json").read_text(encoding="utf-8") == record.to_json()
        assert f"records/{record.key}.json" in links
        command = words.command(record)
        assert command in text
        assert shlex.split(command) == ["firstline", "reproduce", record.key[:16]]


def test_the_index_of_records_has_their_text_forms_and_metrics(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board", title="board").parent
    entries = json.loads((out / "records.json").read_text(encoding="utf-8"))["records"]
    assert [entry["key"] for entry in entries] == sorted(record.key for record in rich.records)
    by_key = {entry["key"]: entry for entry in entries}
    for record in rich.records:
        entry = by_key[record.key]
        forms = (record.task.text, record.defense_text, record.attack.text, record.threat)
        assert (entry["task"], entry["defense"], entry["attack"], entry["threat"]) == forms
        assert entry["metrics"] == record.model_dump(mode="json")["metrics"]


def test_tables_are_marked_up_for_those_who_listen_to_them(rich, tmp_path):
    out = build(rich.records, rich, tmp_path / "board", title="board").parent
    for page in pages(out).values():
        headers = page.tags.count("th")
        assert sum(name == "scope" for tag, name, _ in page.attributes if tag == "th") == headers
        assert page.tags.count("caption") == page.tags.count("table")
        assert ("html", "lang", "en") in page.attributes
    assert "Higher is better" in pages(out)["evasion.html"].text
    assert "Lower is better" in pages(out)["membership.html"].text


def test_a_row_without_a_rank_says_why(rich, tmp_path):
    text = pages(build(rich.records, rich, tmp_path / "board", title="board").parent)["evasion.html"].text
    assert "RuntimeError: boom (the attack, at stage craft)" in text
    assert "results/unread.npz is not there" in text
    assert "gate failed: steps: more steps still help" in text
    assert "incomplete: no record for seed 1" in text


def test_without_records_the_page_says_so_and_how_to_get_some(tmp_path):
    def unused(record):
        raise AssertionError(record)

    out = build([], unused, tmp_path / "board", title="board").parent
    assert set(pages(out)) == {"index.html"}
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
    page = pages(build(gated.records, gated, tmp_path / "board", title="board").parent)["evasion.html"]
    text = " ".join(page.text.split())
    assert "1 black_box_gain … of the examples break under random search" in text
    assert "warn > 2.0%, fail > 5.0% 4.0% warn not measured" in text
    assert "warn < 0.50, fail < 0.20 0.60 not measured" in text
    assert "noise_gain" not in text


def test_a_security_curve_is_drawn_and_given_in_numbers(gated, tmp_path):
    page = pages(build(gated.records, gated, tmp_path / "board", title="board").parent)["evasion.html"]
    drawn = [value for tag, name, value in page.attributes if (tag, name) == ("polyline", "points")]
    assert drawn == ["0.0,0.0 40.0,12.0 80.0,24.0 120.0,36.0 160.0,48.0"]
    text = " ".join(page.text.split())
    assert "0 0.05 0.1 the threat 0.2 0.4 Area" in text
    assert "100.0% 100.0% 75.0% 50.0% 0.0%" in text


def test_what_detectors_and_monitors_tell_apart_is_a_table_of_its_own(bench, new_metric, tmp_path):
    found = {"detection_auc": new_metric(0.8), "queries_until_flagged": new_metric(4, unit="queries")}
    bench.add("mahalanobis", "pgd", [True, False], metrics=found)
    page = pages(build(bench.records, bench, tmp_path / "board", title="board").parent)["evasion.html"]
    text = " ".join(page.text.split())
    assert "Detection Suspect are inputs that an attack moved" in text
    assert "mahalanobis pgd 80.0%" in text
    assert "4.000" in text


def test_without_figures_and_curves_neither_is_mentioned(rich, tmp_path):
    text = pages(build(rich.records, rich, tmp_path / "board", title="board").parent)["evasion.html"].text
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
    assert len(pages(out)) == 6
    for path in out.glob("*.html"):
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
        assert ("meta", "content", POLICY) in page.attributes
        assert not UNSEEN.search(raw)
        assert len(raw) < 100_000
    assert set(contents(out)) == {
        *(f"{page}.html" for page in ("index", "evasion", "poisoning", "membership", "inversion", "streams")),
        *("records.json", "static/style.css"),
        *(f"records/{record.key}.json" for record in bench.records),
        f"streams/{stream.key}.json",
    }


def test_a_template_that_forgets_every_filter_prints_escaped_and_visible_text():
    page = environment().from_string("<p>{{ text }}</p>").render(text="<b>\u202e" + "x" * 10_000)
    assert page.startswith("<p>&lt;b&gt;\\u202exxx")
    assert len(page) < 1_100


def test_the_command_of_a_record_holds_nothing_but_its_key(new):
    record = new(suite="$(reboot); `reboot` 'x'")
    assert words.command(record) == f"firstline reproduce {record.key[:16]}"

"""firstline stream: a wave of attacked windows on a small task, its table, its JSON, its records, and its errors."""

import json
import shutil

import pytest

from firstline.benchmark.run import stream as module

SMALL = ("--seed", "0", "--before", "2", "--during", "3", "--attack", "fgsm", "--no-mlflow")
WAVE = ("stream", "mahalanobis", *SMALL)


@pytest.fixture(scope="module")
def kept(shared, cli):
    """A results folder with the two streams of WAVE. Copy it before you change it."""

    def fill(folder):
        ran = cli(*WAVE, "--results", folder)
        assert ran.code == 0, ran

    return shared("streams", fill)


@pytest.fixture
def copy(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "copy")


@pytest.fixture
def served(monkeypatch):
    """The names of the defenses whose streams are served from now on."""
    found, serve = [], module.serve

    def watched(bench, shape):
        found.append(str(bench.stack))
        return serve(bench, shape)

    monkeypatch.setattr(module, "serve", watched)
    return found


def test_the_brackets_stand_beside_the_defense(cli, kept):
    found = json.loads(cli(*WAVE, "--results", kept, "--json").out)
    rows = {row["defense"]: row["summary"] for row in found["defenses"]}
    assert list(rows) == ["none", "instant oracle", "mahalanobis"]
    assert rows["none"]["detected"]["value"] == 0
    assert rows["instant oracle"]["recovery"] <= 1 <= rows["none"]["recovery"]
    assert 0 <= rows["instant oracle"]["loss"] < rows["none"]["loss"]


def test_the_same_command_again_serves_nothing_and_says_the_same(cli, copy, served):
    before = {path: path.read_bytes() for path in copy.rglob("streams/*/*.json")}
    first, second = (cli(*WAVE, "--results", copy) for _ in range(2))
    assert (first.code, first.out) == (0, second.out)
    assert f"2 streams in {copy / 'streams'}" in first.out
    assert served == []
    assert {path: path.read_bytes() for path in copy.rglob("streams/*/*.json")} == before


def test_a_stream_is_listed_shown_and_measured_again(cli, kept):
    listed = cli("status", "--results", kept, "--keys").out
    assert "2 streams, 0 failed, 0 damaged" in listed
    (start,) = [line.split()[0] for line in listed.splitlines() if line.endswith("mahalanobis")]
    shown = cli("show", start, "--results", kept)
    assert (shown.code, shown.out.count("attacked")) == (0, 3 + 1)  # the windows, and the head
    again = cli("reproduce", start, "--results", kept, "--json")
    assert (again.code, json.loads(again.out)["differ"]) == (0, [])


def test_a_stream_that_was_made_up_is_found_out(cli, copy):
    (path,) = [path for path in copy.rglob("streams/*/*.json") if "mahalanobis" in path.read_text()]
    record = json.loads(path.read_text())
    record["windows"][0]["right"] = 1
    path.write_text(json.dumps(record))
    ran = cli("reproduce", path.stem, "--results", copy)
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "differs in windows")


def test_another_seed_or_shape_is_another_stream(cli, copy, served):
    assert cli("stream", "none", *SMALL, "--fpr", "0.05", "--results", copy).code == 0
    assert len(served) == 1
    assert len(list(copy.rglob("streams/*/*.json"))) == 3


def windows(path):
    return json.loads(path.read_text())["windows"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data.replace(b'"right":2', b'"right":9')]
)
def test_a_damaged_stream_is_named_in_a_line_and_served_again(cli, copy, served, damage):
    paths = list(copy.rglob("streams/*/*.json"))
    (path,) = [path for path in paths if "mahalanobis" in path.read_text()]
    before = windows(path)
    path.write_bytes(damage(path.read_bytes()))
    ran = cli(*WAVE, "--results", copy)
    assert ran.code == 0
    assert ran.err.startswith(f"served again: {path} is not a record: ")
    assert ran.err.count("\n") == 1
    assert len(served) == 1
    assert windows(path) == before


def test_the_leaderboard_shows_what_was_stored_and_leaves_out_what_is_damaged(cli, copy):
    path = next(copy.rglob("streams/*/*.json"))
    assert cli("leaderboard", "build", "--results", copy).code == 0
    assert "mahalanobis" in (copy / "board" / "streams.html").read_text()
    path.write_text("{")
    ran = cli("leaderboard", "build", "--results", copy)
    assert (ran.code, ran.err.count("\n")) == (0, 1)
    assert ran.err.startswith(f"left out: {path} is not a record")
    assert path.stem not in (copy / "board" / "streams.html").read_text()


def test_streams_go_to_mlflow_once(cli, copy, monkeypatch):
    exported = []

    def sync(records, uri, *, files, **_):
        exported.append([path.name for record in records for path in files(record) if path.exists()])
        return len(records)

    monkeypatch.setattr("firstline.benchmark.run.tracking.sync", sync)
    words = [word for word in WAVE if word != "--no-mlflow"]
    for _ in range(2):
        assert cli(*words, "--results", copy, "--mlflow", "http://localhost").code == 0
    assert [sorted(names) for names in exported] == [sorted(p.name for p in copy.rglob("streams/*/*.json"))]
    assert cli("mlflow", "sync", "--results", copy, "--uri", "http://localhost").code == 0
    assert len(exported[1]) == 2


def test_a_backdoored_update_costs_nothing_to_who_leaves_out_its_poison(cli, tmp_path):
    update = ("-a", "badnets", "-m", "poisoning/gray/backdoor:10%,train=100%", "--seed", "0", "--before", "2")
    words = ("--results", tmp_path, "--no-mlflow", "--json")
    found = json.loads(cli("stream", "perfect-filter", "strip+fine-tuning", *update, *words).out)
    rows = {row["defense"]: row for row in found["defenses"]}
    none, clean, mended = (rows[name] for name in ("none", "perfect-filter", "strip+fine-tuning"))
    assert none["summary"]["recovered"]["value"] == 0
    assert none["summary"]["loss"] > 0.2
    assert clean["summary"]["recovered"]["value"] == 1
    assert abs(clean["summary"]["loss"]) < 0.03
    assert mended["summary"]["detected"]["value"] == 1
    assert mended["samples"] > 0
    assert -0.05 < mended["relapse"] <= 1  # a difference of two shares
    assert (none["samples"], none["relapse"]) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stream", "nothing-of-this-name"), "nothing-of-this-name"),
        (("stream", "none", "--before", "400"), "windows of 25 test examples"),
        (("stream", "none", "--size", "5000"), "windows of 5000 test examples"),
        (("stream", "none", "--share", "0"), "at least one other attacked"),
        (("stream", "none", "-a", "ddn", "-m", "evasion/white/l2:0.75"), "name an attack that does"),
        (
            ("stream", "none", "-a", "random-label-flip", "-m", "poisoning/gray/availability:10%,train=100%"),
            "no trigger",
        ),
    ],
)
def test_what_makes_no_stream_is_said_in_a_line(cli, tmp_path, arguments, words):
    found = cli(*arguments, "--seed", "0", "--no-mlflow", "--results", tmp_path)
    assert found.code == 2
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert words in found.err

"""firstline stream: a wave of attacked windows on a small task, its table, its JSON, and its errors."""

import json

import pytest
from typer.testing import CliRunner

from firstline.benchmark.cli.main import app

WAVE = ("stream", "mahalanobis", "--seed", "0", "--before", "2", "--during", "3", "--attack", "fgsm")


def outcome(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_the_brackets_stand_beside_the_defense():
    found = json.loads(outcome(*WAVE, "--json").stdout)
    rows = {row["defense"]: row["summary"] for row in found["defenses"]}
    assert list(rows) == ["none", "instant oracle", "mahalanobis"]
    assert rows["none"]["detected"]["value"] == 0
    assert rows["instant oracle"]["recovery"] <= 1 <= rows["none"]["recovery"]
    assert 0 <= rows["instant oracle"]["loss"] < rows["none"]["loss"]
    assert found["runs"] == json.loads(outcome(*WAVE, "--json").stdout)["runs"]


def test_a_backdoored_update_costs_nothing_to_who_leaves_out_its_poison():
    update = ("-a", "badnets", "-m", "poisoning/gray/backdoor:10%,train=100%", "--seed", "0", "--before", "2")
    found = json.loads(outcome("stream", "perfect-filter", "strip+fine-tuning", *update, "--json").stdout)
    rows = {row["defense"]: row for row in found["defenses"]}
    none, clean, mended = (rows[name] for name in ("none", "perfect-filter", "strip+fine-tuning"))
    assert none["summary"]["recovered"]["value"] == 0
    assert none["summary"]["loss"] > 0.2
    assert clean["summary"]["recovered"]["value"] == 1
    assert abs(clean["summary"]["loss"]) < 0.03
    assert mended["summary"]["detected"]["value"] == 1
    assert mended["samples"] > 0
    assert 0 <= mended["relapse"] <= 1
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
def test_what_makes_no_stream_is_said_in_a_line(arguments, words):
    found = outcome(*arguments, "--seed", "0")
    assert found.exit_code != 0
    message = " ".join(str(found.exception or found.output).split())
    assert words in message

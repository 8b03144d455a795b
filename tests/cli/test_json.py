"""--json: a program can read what people can, and nothing else is on standard output."""

import json

import pytest
import typer

from firstline.benchmark.cli.main import app

# Command: its words, and what must be in its answer. {smoke} is a results folder, {key} one of its records, {fresh} an empty one.
COMMANDS = {
    "list": (["list"], lambda found: "pgd" in [item["name"] for item in found["attacks"]]),
    "list one": (["list", "suites"], lambda found: list(found) == ["suites"]),
    "show an item": (["show", "pgd"], lambda found: found["settings"][0]["name"] == "steps"),
    "show a suite": (["show", "smoke"], lambda found: found["seeds"] == [0]),
    "show a recipe": (["show", "wong2018"], lambda found: found["expected"][0]["paper"] == 1.8),
    "show a record": (["show", "{key}", "--results", "{smoke}"], lambda found: found["status"] == "ok"),
    "plan": (["plan", "smoke", "--results", "{smoke}"], lambda found: len(found["reuse"]) == 8 and not found["run"]),
    "plan skips": (["plan", "smoke", "--results", "{smoke}"], lambda found: found["skip"] == []),
    "run": (["run", "smoke", "--results", "{smoke}", "--no-mlflow"], lambda found: len(found) == 8),
    "status": (["status", "--results", "{smoke}"], lambda found: len(found["records"]) == 8 and not found["damaged"]),
    "compare": (
        ["compare", "none", "input-noise(sigma=0.05)", "--results", "{smoke}"],
        lambda found: found[0]["n"] == 64 and 0 < found[0]["p"] <= 1,
    ),
    "ablate": (
        ["ablate", "input-noise", "--task=breast-cancer", "--attack=fgsm", "--seed=0", "--threat=evasion/white/linf:0.05",
         "--examples=16", "--jobs=1", "--results", "{fresh}"],
        lambda found: [(d["layer"], d["b"], d["n"]) for d in found] == [("input-noise", "none", 16)],
    ),
    "vulnerability": (
        ["vulnerability", "none", "--results", "{smoke}", "--examples", "16"],
        lambda found: {s["defense"] for s in found["systems"]} == {"none"} and found["data"],
    ),
    "stream": (
        ["stream", "none", "--attack=fgsm", "--seed=0", "--before=2", "--during=3", "--results", "{fresh}", "--no-mlflow"],
        lambda found: [d["defense"] for d in found["defenses"]] == ["none", "instant oracle"],
    ),
    "check": (["check", "fgsm"], lambda found: {f["item"] for f in found} == {"attack fgsm"}),
    "doctor": (["doctor", "--results", "{smoke}"], lambda found: {f["level"] for f in found} <= {"ok", "note"}),
    "reproduce": (
        ["reproduce", "{recipe}", "--results", "{smoke}"],
        lambda found: found[0]["verdict"] == "differs" and found[0]["paper"] == 200,
    ),
}  # fmt: skip


def with_json(command):
    return any("--json" in parameter.opts for parameter in command.params)


def test_no_command_with_json_is_forgotten_here():
    found = {name for name, command in typer.main.get_command(app).commands.items() if with_json(command)}
    assert found == {name.split()[0] for name in COMMANDS}


@pytest.mark.parametrize(("words", "right"), COMMANDS.values(), ids=COMMANDS)
def test_json_parses_and_holds_the_answer(cli, catalogue, smoke, own_recipe, tmp_path, words, right):
    key = next(path.stem for path in smoke.rglob("records/*/*.json"))
    ran = cli(*(w.format(smoke=smoke, key=key, recipe=own_recipe, fresh=tmp_path) for w in words), "--json")
    assert ran.code == (words[0] == "reproduce"), ran.err
    assert right(json.loads(ran.out))


def test_json_holds_what_the_record_does(cli, smoke):
    path = next(smoke.rglob("records/*/*.json"))
    ran = cli("show", path.stem, "--results", smoke, "--json")
    assert json.loads(ran.out) == json.loads(path.read_text())

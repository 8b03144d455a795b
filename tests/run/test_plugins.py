"""Bad plugins in a real run: each costs its own cells, and is told in one line."""

import json
from collections import Counter

import pytest

from firstline.benchmark.run.store import Store

PLUGIN = '''
"""What plugins do wrong. Source: experience."""

import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from firstline.benchmark.api import Data, Defense, Evasion, Response, Splits, System, attack, defense


def is_scored():
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "serve":
        frame = frame.f_back
    return frame is not None


@defense("raises")
@dataclass(frozen=True)
class Raises(Defense):
    def train(self, module, data, ctx):
        raise ValueError("no\\nnetwork")


@defense("exits")
@dataclass(frozen=True)
class Exits(Defense):
    def train(self, module, data, ctx):
        sys.exit(5)


@defense("nan-weights")
@dataclass(frozen=True)
class NanWeights(Defense):
    def train(self, module, data, ctx):
        with torch.no_grad():
            next(module.parameters()).fill_(float("nan"))
        return module


class Untrained(Defense):
    def train(self, module, data, ctx):
        return module


class NanSystem(System):
    def respond(self, x, rng):
        return Response(self._inside().respond(x, rng).logits * float("nan"))


@defense("nan-logits")
@dataclass(frozen=True)
class NanLogits(Untrained):
    def deploy(self, system, task):
        return NanSystem(system)


class WideSystem(System):
    def respond(self, x, rng):
        return Response(torch.zeros(len(x), 3))


@defense("wide")
@dataclass(frozen=True)
class Wide(Untrained):
    def deploy(self, system, task):
        return WideSystem(system)


class DyingSystem(System):
    def respond(self, x, rng):
        if is_scored():
            os._exit(3)
        return self._inside().respond(x, rng)


@defense("dies-when-scored")
@dataclass(frozen=True)
class Dies(Untrained):
    def deploy(self, system, task):
        return DyingSystem(system)


class HuntingSystem(System):
    def respond(self, x, rng):
        if is_scored():
            there = [type(o).__name__ for o in gc.get_objects() if issubclass(type(o), Data | Splits)]
            with open(os.environ["HUNTED"], "a") as file:
                file.write(f"{len(there)} {len(x)}\\n")
        return self._inside().respond(x, rng)


@defense("hunts-data")
@dataclass(frozen=True)
class Hunts(Untrained):
    def deploy(self, system, task):
        return HuntingSystem(system)


@attack("kills")
@dataclass(frozen=True)
class Kills(Evasion):
    needs, goals = (), ("linf",)

    def perturb(self, target, x, y, region, rng):
        os._exit(3)


@attack("leaves-its-ball")
@dataclass(frozen=True)
class Leaves(Evasion):
    needs, goals = (), ("linf",)

    def perturb(self, target, x, y, region, rng):
        return (x + 2 * region.eps).clamp(0, 1)


@attack("nan-points")
@dataclass(frozen=True)
class NanPoints(Evasion):
    needs, goals = (), ("linf",)

    def perturb(self, target, x, y, region, rng):
        return x * float("nan")


@attack("greedy")
@dataclass(frozen=True)
class Greedy(Evasion):
    needs, goals = ("labels",), ("linf",)

    def perturb(self, target, x, y, region, rng):
        while True:
            target.labels(x)


@attack("lies")
@dataclass(frozen=True)
class Lies(Evasion):
    needs, goals = ("labels",), ("linf",)

    def perturb(self, target, x, y, region, rng):
        return x + 0 * target.slope(x, y).gradient
'''

BLACK = "evasion/black/linf:0.05,queries=5"
# defense or attack: kind, class, stage, and words of the message
WANTED = {
    "raises": ("defense", "ValueError", "fit", "no network (odd_plugin.py:"),
    "exits": ("defense", "SystemExit", "fit", "5 (odd_plugin.py:"),
    "nan-weights": ("defense", "ContractBroken", "fit", "of the fitted system is NaN or infinite"),
    "nan-logits": ("defense", "ContractBroken", "score", "answers every clean input with NaN"),
    "wide": ("defense", "SystemFailed", "craft", "logits of shape (16, 3); it must be (16, 2)"),
    "dies-when-scored": ("defense", "SystemFailed", "score", "ended its process while it was scored"),
    "kills": ("infra", "WorkerDied", "cell", "the worker process died: exit code 3"),
    "leaves-its-ball": ("attack", "ContractBroken", "craft", "the attack "),
    "nan-points": ("attack", "ContractBroken", "craft", "NaN"),
    "greedy": ("budget", "BudgetExhausted", "craft", "grants 5 queries per example"),
    "lies": ("attack", "AccessDenied", "craft", "asked for gradients, which evasion/black"),
}
DEFENSES = list(WANTED)[:6]
ATTACKS = list(WANTED)[6:9]


@pytest.fixture(scope="module")
def place(shared, plugin):
    """Return a folder with the plugin, and a suite that uses it."""

    def fill(folder):
        plugin(folder, "odd_plugin", PLUGIN)
        blocks = [
            (["none", "hunts-data", *DEFENSES], ["uniform-noise(draws=1)"], "evasion/white/linf:0.05"),
            (["none"], [*ATTACKS, "uniform-noise(draws=2)"], "evasion/white/linf:0.05"),
            (["none"], ["greedy", "lies", "uniform-noise(draws=3)"], BLACK),
        ]
        lines = ['name = "odd"', 'version = "1"', "seeds = [0]", "examples = 16"]
        for defenses, attacks, threat in blocks:
            lines += ["[[matrix]]", 'tasks = ["breast-cancer"]', f"defenses = {defenses}"]
            lines += [f"attacks = {attacks}", f'threats = ["{threat}"]']
        (folder / "odd.toml").write_text("\n".join(lines))

    return shared("odd-plugin", fill)


@pytest.fixture(scope="module")
def odd(shared, cli, place):
    """Return the folder of one run over all bad plugins: what it printed, what it found, and its results."""

    def fill(folder):
        words = ["run", place / "odd.toml", "--jobs", 2, "--no-mlflow", "--results", folder / "results"]
        ran = cli.apart(*words, path=place, HUNTED=str(folder / "hunted"))
        (folder / "ran.json").write_text(json.dumps([ran.code, ran.out, ran.err]))

    return shared("odd", fill)


@pytest.fixture(scope="module")
def records(odd):
    """Return the records by the name of what is odd about them: a defense, else an attack."""
    found = {}
    for record in Store(odd / "results").records():
        name = record.attack.text if record.defense_text == "none" else record.defense_text
        found[name] = record
    return found


@pytest.fixture(scope="module")
def ran(odd):
    return json.loads((odd / "ran.json").read_text())


@pytest.mark.parametrize("name", WANTED)
def test_a_bad_plugin_is_a_failed_record_that_says_what_it_did(records, name):
    record = records[name]
    kind, error, stage, words = WANTED[name]
    assert (record.status, record.error.kind, record.error.type, record.error.stage) == ("failed", kind, error, stage)  # fmt: skip
    assert words in record.error.message
    assert "\n" not in record.error.message
    assert record.metrics == {}
    assert record.outcomes is None


def test_the_other_cells_are_measured(records):
    good = {name for name, record in records.items() if record.status == "ok"}
    assert good == {"hunts-data", *(f"uniform-noise(draws={n})" for n in (1, 2, 3))}
    assert len(records) == len(WANTED) + 4


def test_cells_behind_one_that_killed_their_worker_still_run(records):
    """Of one group, in this order; the system that was fitted before is not fitted again."""
    assert records["uniform-noise(draws=2)"].status == "ok"
    fits = {records[name].stages["fit"] for name in records if records[name].defense_text == "none"}
    assert len(fits) == 1
    seconds = {records[f"uniform-noise(draws={n})"].cost.fit_seconds for n in (1, 2, 3)}
    assert len(seconds) == 1


def test_the_run_says_so_in_one_line_each(ran):
    code, out, err = ran
    assert code == 1
    lines = [line for line in out.splitlines() if line.startswith("failed (")]
    assert len(lines) == 10, "ten are shown, the rest is counted"
    assert "… and 1 more; `firstline status` lists all" in out
    assert "Traceback" not in out + err
    assert "15 records of 15 cells" in out


def test_a_failure_is_told_while_the_run_goes_on(ran):
    _, _, err = ran
    assert sum("failed (" in line for line in err.splitlines()) == 10


def test_status_lists_every_failure_once(cli, odd):
    found = cli("status", "--results", odd / "results")
    lines = [line for line in found.out.splitlines() if " failed (" in line]
    names = Counter(name for line in lines for name in WANTED if f"· {name} ·" in line)
    assert found.code == 0
    assert names == dict.fromkeys(WANTED, 1)
    assert len(lines) == len(WANTED)


def test_the_board_is_built_and_shows_failures_without_a_rank(odd):
    pages = [path.read_text() for path in (odd / "results" / "board").rglob("*.html")]
    assert pages
    assert any("uniform-noise" in page for page in pages)
    assert any("hunts-data" in page for page in pages)


def test_no_data_is_in_the_process_that_scores(odd):
    """The system of `hunts-data` looked for it in every answer that it gave there."""
    lines = (odd / "hunted").read_text().split("\n")[:-1]
    assert lines == ["0 32"]


def test_the_same_command_repeats_only_what_the_machine_failed(cli, odd, place):
    ran = cli.apart("plan", place / "odd.toml", "--results", odd / "results", "--json", path=place)
    plan = json.loads(ran.out)
    assert [cell["attack"] for cell in plan["run"]] == ["kills"]
    assert len(plan["reuse"]) == 14

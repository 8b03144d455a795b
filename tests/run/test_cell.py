"""A group of cells in this process: on a task so small that a cell takes milliseconds."""

import errno
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from firstline.benchmark.core.contracts import Architecture, Defense, Evasion, Extraction, Task, initialise
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import (
    BudgetExhausted,
    ContractBroken,
    DataProblem,
    FirstlineError,
    SystemFailed,
)
from firstline.benchmark.core.registry import attack, defense, task
from firstline.benchmark.core.system import System
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe
from firstline.benchmark.run import cell as module
from firstline.benchmark.run import scorer
from firstline.benchmark.run.cell import describe, run_group
from firstline.benchmark.run.keys import Use, fit_preimage, key
from firstline.benchmark.run.recording import Job
from firstline.benchmark.run.scorer import Nursery
from firstline.benchmark.run.store import Store, Unwritable

HERE = os.getpid()
TRAINED: Counter[str] = Counter()


def dots(n, seed):
    x = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))
    return Data.of(x, (x[:, 0] > 0.5).long())


@dataclass(frozen=True)
class Dots(Task):
    """Points in a box; their first coordinate tells the class."""

    modality, licence, classes, embedded = "table", "CC0", 2, True
    space, eps = InputSpace(shape=(4,)), {"linf": 0.1}
    architectures = {"linear": Architecture(lambda: nn.Linear(4, 2), Recipe(epochs=5, batch=8, rate=0.1))}  # noqa: RUF012

    def load(self, folder):
        return Splits(dots(64, 0), dots(32, 1), dots(8, 2))


@dataclass(frozen=True)
class Stay(Evasion):
    """Moves nothing."""

    needs, goals = (), ("linf",)
    copy: int = 0

    def perturb(self, target, x, y, region, rng):
        return region.random(rng.torch("points"))


@dataclass(frozen=True)
class Counting(Defense):
    """Counts how often it trains."""

    def train(self, module, data, ctx):
        TRAINED[self.name] += 1
        return Defense.train(self, module, data, ctx)


@dataclass(frozen=True)
class Raising(Counting):
    def train(self, module, data, ctx):
        TRAINED[self.name] += 1
        raise ValueError("no\n  network")


@dataclass(frozen=True)
class Leaving(Counting):
    def train(self, module, data, ctx):
        TRAINED[self.name] += 1
        raise SystemExit(3)


@dataclass(frozen=True)
class Untold(Counting):
    """Answers where it is attacked, and hangs where it is scored."""

    def deploy(self, system, task):
        class Hanging(System):
            def respond(self, x, rng):
                while os.getpid() != HERE:
                    time.sleep(1)
                return self._inside().respond(x, rng)

        return Hanging(system)


@dataclass(frozen=True)
class Remembering(Counting):
    """Is sure of a suspect if it draws now what it drew when the rows were collected."""

    drawn: ClassVar[list[float]] = []

    def collect(self, data, ctx):
        self.drawn.append(torch.rand((), generator=ctx.rng.torch("secret")).item())
        return data

    def verify(self, suspect, data, ctx):
        same = torch.rand((), generator=ctx.rng.torch("secret")).item() == self.drawn[-1]
        return 0.0 if same and len(data) == 64 else 1.0


@dataclass(frozen=True)
class Guess(Extraction):
    """Makes a network that learned nothing."""

    needs, goals = ("labels",), ("labels",)

    def extract(self, target, aux, threat, rng):
        return initialise(lambda: nn.Linear(4, 2), rng)


@pytest.fixture(autouse=True)
def small(registering):
    """Register the small items; forget what was counted."""
    task("dots")(Dots)
    attack("stay")(Stay)
    attack("guess")(Guess)
    for name, cls in (
        ("counting", Counting),
        ("raising", Raising),
        ("leaving", Leaving),
        ("untold", Untold),
        ("remembering", Remembering),
    ):
        defense(name)(cls)
    TRAINED.clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cells(new_cell):
    """Return a function from a defense to two cells of it."""

    def make(defense="counting", **changes):
        base = replace(
            new_cell((Use(defense, defense, 1, {}, ""),)),
            task=Use("dots", "dots", 1, {}, ""),
            fingerprint=Dots().load(None).fingerprint(),
            **changes,
        )
        return [replace(base, attack=Use(f"stay({n})", "stay", 1, {"copy": n}, "")) for n in (0, 1)]

    return make


@pytest.fixture
def run(tmp_path):
    """Return a function that runs cells as one group and returns what it was told, and the records."""

    def go(cells, *, blind=False, stopping=lambda: False, root=tmp_path / "results"):
        told, nursery = [], Nursery() if blind else None
        run_group(
            cells,
            Job(root, None, blind),
            nursery,
            lambda cell: told.append(("starting", cell)),
            lambda cell, record: told.append(("done", cell, record)),
            stopping,
        )
        if nursery is not None:
            nursery.close()
        return [event[:2] for event in told], [event[2] for event in told if event[0] == "done"]

    return go


def test_every_cell_is_told_when_it_starts_and_when_its_record_is_on_disk(cells, run, tmp_path):
    group = cells()
    told, records = run(group)
    assert told == [(what, cell) for cell in group for what in ("starting", "done")]
    assert [r.status for r in records] == ["ok", "ok"]
    assert list(Store(tmp_path / "results").records()) == sorted(records, key=lambda r: r.key)
    assert records[0].metrics["clean_accuracy"].value > 0.7


def test_a_system_is_fitted_once_for_all_its_attacks_and_runs(cells, run):
    run(cells())
    run(cells(examples=7))
    assert TRAINED["counting"] == 1
    run(cells(seed=1))
    assert TRAINED["counting"] == 2


def test_an_owner_draws_the_same_when_it_collects_and_when_it_verifies(cells, run):
    threat, guess = Threat.parse("extraction/black/labels:10"), Use("guess", "guess", 1, {}, "")
    _, (record,) = run([replace(cells("remembering")[0], threat=threat, attack=guess)])
    assert record.status == "ok", record.error
    assert {name: record.metrics[name].value for name in ("claimed", "own_p")} == {"claimed": 1, "own_p": 0}


def test_blind_scoring_finds_what_seeing_does(cells, run, tmp_path):
    _, blind = run(cells(), blind=True)
    _, seeing = run(cells(), root=tmp_path / "other")
    assert [r.metrics for r in blind] == [r.metrics for r in seeing]
    assert blind[0].isolation.blind
    assert {r.key for r in blind}.isdisjoint(r.key for r in seeing)


def test_a_damaged_fit_is_fitted_again_to_the_same_numbers(cells, run, tmp_path):
    group = cells()
    _, before = run(group)
    stored = key(fit_preimage(group[0], poisoned=False))
    path = tmp_path / "results" / "fits" / stored[:2] / f"{stored}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    _, after = run(group)
    assert TRAINED["counting"] == 2
    assert [r.metrics for r in after] == [r.metrics for r in before]
    run(group)
    assert TRAINED["counting"] == 2


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("raising", "ValueError", "no network (test_cell.py:"), ("leaving", "SystemExit", "3 (test_cell.py:")],
)
def test_a_fit_that_fails_is_tried_once_and_fails_every_cell(cells, run, name, kind, message):
    _, records = run(cells(name))
    assert TRAINED[name] == 1
    assert [(r.status, r.error.kind, r.error.type, r.error.stage) for r in records] == [
        ("failed", "defense", kind, "fit")
    ] * 2
    assert records[0].error == records[1].error
    assert records[0].error.message.startswith(message)


def test_a_system_that_hangs_while_it_is_scored_fails_and_the_run_goes_on(cells, run, monkeypatch):
    monkeypatch.setattr(scorer, "DEADLINE", 0.3)
    told, records = run([*cells("untold"), *cells("untold", examples=1)], blind=True)
    assert len(told) == 8
    for record in records:
        assert (record.error.kind, record.error.type, record.error.stage) == (
            "defense",
            "SystemFailed",
            "score",
        )
        assert record.error.message.startswith("the system did not answer within")


def test_no_cell_is_begun_after_a_stop(cells, run):
    calls = iter([False, True])
    group = cells()
    assert run(group, stopping=lambda: next(calls))[0] == [("starting", group[0]), ("done", group[0])]


def test_data_that_changed_since_the_plan_is_the_tasks_failure(cells, run):
    _, records = run([replace(cell, fingerprint="0" * 64) for cell in cells()])
    assert {(r.error.kind, r.error.type, r.error.stage) for r in records} == {("task", "DataProblem", "load")}
    assert "changed since the run was planned; run the command again" in records[0].error.message


def test_results_that_cannot_be_saved_end_the_run(cells, run, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "records").write_text("a file")
    with pytest.raises(Unwritable):
        run(cells())


def test_a_full_disk_while_fitting_is_not_the_defenses_failure(cells, run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("firstline.benchmark.run.store.os.fsync", full)
    with pytest.raises(Unwritable, match="No space left"):
        run(cells())


def raised(error):
    """Return an error as it is when it was caught."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("error", "stage", "kind"),
    [
        (ValueError("x"), "load", "task"),
        (ValueError("x"), "fit", "defense"),
        (ValueError("x"), "poison", "attack"),
        (ValueError("x"), "craft", "attack"),
        (ValueError("x"), "score", "defense"),
        (ValueError("x"), "measure", "infra"),
        (ContractBroken("x"), "craft", "attack"),
        (SystemFailed("x"), "craft", "defense"),
        (BudgetExhausted("x"), "craft", "budget"),
        (DataProblem("x"), "fit", "task"),
        (MemoryError(), "fit", "infra"),
        (torch.OutOfMemoryError("x"), "craft", "infra"),
    ],
)
def test_the_stage_and_the_error_say_who_is_to_blame(error, stage, kind):
    failure = describe(raised(error), stage)
    assert (failure.kind, failure.type, failure.stage) == (kind, type(error).__name__, stage)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(FirstlineError("do this"), "do this", id="foreseen"),
        pytest.param(ValueError("a\n  b\tc"), "a b c (test_cell.py:", id="unforeseen"),
        pytest.param(KeyError(), "no message (test_cell.py:", id="without words"),
    ],
)
def test_a_failure_is_one_line_with_the_place_of_what_nobody_foresaw(error, message):
    told = describe(raised(error), "craft").message
    assert told.startswith(message)
    assert told == message or "(" in message
    assert "\n" not in told


def test_a_failure_is_not_longer_than_a_few_lines():
    assert len(describe(raised(ValueError("x" * 10_000)), "craft").message) == 500


def test_a_systems_failure_names_the_place_inside_the_system():
    def fails():
        try:
            raise ZeroDivisionError("x")
        except ZeroDivisionError as error:
            raise SystemFailed("the system raised ZeroDivisionError: x") from error

    with pytest.raises(SystemFailed) as caught:
        fails()
    line = fails.__code__.co_firstlineno + 2
    assert describe(caught.value, "craft").message.endswith(f"x (test_cell.py:{line})")


def test_costs_are_counted_by_stage(cells, run, monkeypatch):
    """Attacks by the CPU's clock; scoring, which another process does, by that on the wall."""
    ticks = {
        name: iter(range(0, 1000 * step, step)) for name, step in (("process_time", 1), ("perf_counter", 10))
    }
    for name, ticking in ticks.items():
        monkeypatch.setattr(module, name, lambda ticking=ticking: float(next(ticking)))
    _, (first, second) = run(cells())
    assert first.cost.fit_seconds > 0
    assert first.cost.fit_seconds == second.cost.fit_seconds, "the shared fit is part of both"
    assert first.cost.craft_seconds == second.cost.craft_seconds == 1
    assert first.cost.score_seconds == second.cost.score_seconds == 10
    assert first.cost.queries == 0


def test_two_defenses_meet_the_same_examples(cells, run, tmp_path):
    store = Store(tmp_path / "results")
    ids = [
        store.outcomes(run(cells(name, examples=9))[1][0])["ids"].tolist() for name in ("counting", "untold")
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 9

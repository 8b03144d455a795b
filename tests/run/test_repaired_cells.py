"""Cells whose stack repairs: fitted once with the undefended system, repaired once, scored blindly from the store."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from firstline.benchmark.core.contracts import Architecture, Defense, PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.registry import attack, defense, task
from firstline.benchmark.core.system import Bare, opened
from firstline.benchmark.core.training import Recipe
from firstline.benchmark.run.cell import run_group
from firstline.benchmark.run.keys import Use, key, repair_preimage, stage_keys
from firstline.benchmark.run.recording import Job
from firstline.benchmark.run.scorer import Nursery
from firstline.benchmark.run.store import Store

DONE: Counter[str] = Counter()
THREAT = "poisoning/white/backdoor:20%"


def dots(n, seed):
    x = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))
    return Data.of(x, (x[:, 0] > 0.5).long())


def mark(x):
    x = x.clone()
    x[:, 3] = 1.0
    return x


@dataclass(frozen=True)
class Dots(Task):
    """Points in a box; their first coordinate tells the class."""

    modality, licence, classes, embedded = "table", "CC0", 2, True
    space, eps = InputSpace(shape=(4,)), {"linf": 0.1}
    architectures = {"linear": Architecture(lambda: nn.Linear(4, 2), Recipe(epochs=5, batch=8, rate=0.1))}  # noqa: RUF012

    def load(self, folder):
        return Splits(dots(64, 0), dots(40, 1), dots(150, 2))


@dataclass(frozen=True)
class Marked(Poisoning):
    """Marks rows of class 0 and calls them class 1."""

    needs, goals = ("train",), ("backdoor",)

    def poison(self, train, task, budget, threat, rng):
        DONE["poisoned"] += 1
        rows = (train.y == 0).nonzero().flatten()[:budget]
        x, y = train.x.clone(), train.y.clone()
        x[rows], y[rows] = mark(x[rows]), 1
        return PoisonedData(Data(x, y, train.ids), train.ids[rows], mark, 1)


@dataclass(frozen=True)
class Counting(Defense):
    """Trains as the recipe says, and is counted."""

    def train(self, module, data, ctx):
        DONE["fitted"] += 1
        return Defense.train(self, module, data, ctx)


@dataclass(frozen=True)
class Mend(Defense):
    """Forgets the last coordinate, in so many parts."""

    parts: int = 2

    def recover(self, system, incident, ctx):
        DONE["repaired"] += 1
        repaired, network = opened(system)
        for part in range(1, self.parts + 1):
            with torch.no_grad():
                network.weight[:, 3] *= 1 - part / self.parts
            ctx.watch(repaired, 1, 10)
        return repaired


@dataclass(frozen=True)
class Widen(Defense):
    """Returns a network of another shape."""

    def recover(self, system, incident, ctx):
        return Bare(nn.Linear(4, 3))


@pytest.fixture(autouse=True)
def small(registering):
    """Register the small items; forget what was counted."""
    task("dots")(Dots)
    attack("marked")(Marked)
    for name, cls in (("counting", Counting), ("mend", Mend), ("widen", Widen)):
        defense(name)(cls)
    DONE.clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cell(new_cell):
    """Return a function from repairs, by name and settings, to a cell of them around `counting`."""

    def make(*repairs, **changes):
        base = Use("counting", "counting", 1, {}, "", (), ("train",))
        more = [Use(f"{name}{parts}", name, 1, parts, "", (), ("recover",)) for name, parts in repairs]
        return replace(
            new_cell((base, *more), Use("marked", "marked", 1, {}, ""), THREAT),
            task=Use("dots", "dots", 1, {}, ""),
            fingerprint=Dots().load(None).fingerprint(),
            fitted=(base,) if more else (),
            **changes,
        )

    return make


@pytest.fixture
def run(tmp_path):
    """Return a function that runs one cell and returns its record."""

    def go(cell, *, blind=False, root=tmp_path / "results"):
        found, nursery = [], Nursery() if blind else None
        job = Job(root, None, blind)
        run_group([cell], job, nursery, lambda _: None, lambda _, r: found.append(r), lambda: False)
        if nursery is not None:
            nursery.close()
        return found[0]

    return go


MEND = ("mend", {"parts": 2})


def test_a_new_repair_retrains_nothing(cell, run):
    plain = run(cell())
    assert DONE["fitted"] == 2  # without poison and with it
    repaired, other = run(cell(MEND)), run(cell(("mend", {"parts": 3})))
    assert (DONE["fitted"], DONE["repaired"]) == (2, 2)
    success = "attack_success_rate"
    assert repaired.metrics[f"{success}_before_repair"].value == plain.metrics[success].value
    assert repaired.metrics[success].value < plain.metrics[success].value
    assert [x for x, _ in other.curves["recovery_accuracy"]] == [0, 10, 20, 30]
    assert repaired.cost.repair_seconds > 0
    assert repaired.cost.fit_seconds == plain.cost.fit_seconds
    assert repaired.stages["fit"] == plain.stages["fit"]


def test_a_repair_is_stored_with_what_was_seen_of_it(cell, run, tmp_path):
    first = run(cell(MEND))
    Store(tmp_path / "results").record_path(first.key).unlink()
    again = run(cell(MEND))
    assert DONE["repaired"] == 1
    assert again.timeless() == first.timeless()
    assert again.cost.repair_seconds == first.cost.repair_seconds


def test_a_repair_made_elsewhere_is_the_same(cell, run, tmp_path):
    first, again = run(cell(MEND)), run(cell(MEND), root=tmp_path / "other")
    assert DONE["repaired"] == 2
    assert again.timeless() == first.timeless()


def test_a_damaged_repair_is_made_again_and_the_fit_is_not(cell, run, tmp_path):
    first = run(cell(MEND))
    stored = key(repair_preimage(cell(MEND)))
    assert stored == stage_keys(cell(MEND))["repair"]
    path = tmp_path / "results" / "fits" / stored[:2] / f"{stored}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    again = run(cell(MEND))
    assert (DONE["fitted"], DONE["repaired"]) == (2, 2)
    assert again.timeless() == first.timeless()


def test_blind_scoring_finds_what_seeing_does(cell, run, tmp_path):
    blind, seeing = run(cell(MEND), blind=True), run(cell(MEND), root=tmp_path / "other")
    assert blind.metrics == seeing.metrics
    assert blind.curves == seeing.curves


def test_repairs_follow_each_other(cell, run):
    found = run(cell(MEND, ("mend", {"parts": 3})))
    assert [x for x, _ in found.curves["recovery_accuracy"]] == [0, 10, 20, 30, 40, 50]


def test_a_repair_that_changes_the_modules_is_a_failed_cell_of_the_defense(cell, run):
    found = run(cell(("widen", {})))
    assert (found.error.kind, found.error.stage, found.error.type) == ("defense", "repair", "ContractBroken")
    assert "a repair changes values, not modules" in found.error.message
    assert "\n" not in found.error.message

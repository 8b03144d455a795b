"""Cells of membership inference: systems in pairs, fitted once, stored, and shared by all attacks."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from firstline.benchmark.core.contracts import Architecture, Defense, Membership, Task
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.registry import attack, defense, task
from firstline.benchmark.core.training import Recipe
from firstline.benchmark.run.cell import run_group
from firstline.benchmark.run.keys import Use
from firstline.benchmark.run.recording import Job
from firstline.benchmark.run.store import Store

DONE: Counter[str] = Counter()
KNOWN = "membership/gray/scores,defense=known"


def points(n, seed):
    x = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))
    return Data.of(x, (x[:, 0] > 0.5).long())


@dataclass(frozen=True)
class Points(Task):
    """Points in a box; their first coordinate tells the class."""

    modality, licence, classes, embedded = "table", "CC0", 2, True
    space, eps = InputSpace(shape=(4,)), {"linf": 0.1}
    architectures = {"linear": Architecture(lambda: nn.Linear(4, 2), Recipe(epochs=3, batch=8, rate=0.1))}  # noqa: RUF012

    def load(self, folder):
        return Splits(points(64, 0), points(40, 1), points(150, 2))


@dataclass(frozen=True)
class Counted(Defense):
    """Trains as the recipe says, and counts the rows."""

    def train(self, module, data, ctx):
        DONE["fitted"] += 1
        DONE[f"rows {len(data)}"] += 1
        return Defense.train(self, module, data, ctx)


@dataclass(frozen=True)
class Near(Membership):
    """Compares with the mean of the shadows."""

    needs, goals = ("scores", "architecture"), ("scores",)

    def score(self, target, candidates, shadows, threat, rng):
        DONE["shadows"] = len(shadows.systems)
        return (target.scores(candidates.x).logits - shadows.logits.mean(0)).abs().sum(1)


@dataclass(frozen=True)
class Plain(Membership):
    """Asks, and needs no shadow."""

    needs, goals = ("scores",), ("scores",)

    def score(self, target, candidates, shadows, threat, rng):
        return target.scores(candidates.x).logits[:, 0]


@pytest.fixture(autouse=True)
def small(registering):
    """Register the small items; forget what was counted."""
    task("points")(Points)
    defense("counted")(Counted)
    attack("near")(Near)
    attack("plain")(Plain)
    DONE.clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cell(new_cell):
    def make(name="near", threat=KNOWN, shadows=4, **changes):
        stack = (Use("counted", "counted", 1, {}, "", (), ("train",)),)
        return replace(
            new_cell(stack, Use(name, name, 1, {}, ""), f"{threat},shadows={shadows}"),
            task=Use("points", "points", 1, {}, ""),
            fingerprint=Points().load(None).fingerprint(),
            **changes,
        )

    return make


@pytest.fixture
def run(tmp_path):
    """Return a function that runs cells in one group and returns their records."""

    def go(*cells, root=tmp_path / "results"):
        found = []
        run_group(
            cells, Job(root, None, False), None, lambda _: None, lambda _, r: found.append(r), lambda: False
        )
        assert [record.error for record in found] == [None] * len(found)
        return found

    return go


def test_all_attacks_share_the_systems_and_more_shadows_fit_what_is_missing(cell, run):
    first, other = run(cell(), cell("plain"))
    assert (DONE["fitted"], DONE["rows 32"], DONE["shadows"]) == (4, 4, 2)
    assert first.stages["fit"] == other.stages["fit"]
    assert first.cost.fit_seconds == other.cost.fit_seconds > 0
    run(cell(shadows=8))
    assert (DONE["fitted"], DONE["shadows"]) == (8, 6)
    run(cell(shadows=6))  # the first three pairs
    assert DONE["fitted"] == 8


def test_a_stored_bank_gives_the_record_that_the_fresh_one_gave(cell, run, tmp_path):
    (first,) = run(cell())
    Store(tmp_path / "results").record_path(first.key).unlink()
    (again,) = run(cell())
    assert DONE["fitted"] == 4
    assert again.timeless() == first.timeless()
    (elsewhere,) = run(cell(), root=tmp_path / "other")
    assert DONE["fitted"] == 8
    assert elsewhere.timeless() == first.timeless()


def test_a_damaged_pair_is_fitted_again(cell, run, tmp_path):
    (first,) = run(cell())
    Store(tmp_path / "results").record_path(first.key).unlink()
    stored = sorted((tmp_path / "results" / "fits").glob("*/*.safetensors"))
    assert len(stored) == 2
    stored[0].write_bytes(b"nothing")
    (again,) = run(cell())
    assert DONE["fitted"] == 6
    assert again.timeless() == first.timeless()


def test_shadows_of_who_does_not_know_the_defense_have_none(cell, run):
    run(cell(threat="membership/gray/scores"))
    assert DONE["fitted"] == 4  # the targets; the shadows are trained by `none`
    assert DONE["shadows"] == 2


def test_other_canaries_are_other_systems(cell, run):
    (plain,), (canaries,) = run(cell()), run(cell(threat=KNOWN + ",canaries=10"))
    assert DONE["fitted"] == 8
    assert plain.stages["fit"] != canaries.stages["fit"]
    assert "canary_auc" in canaries.metrics

"""Ownership inside the extraction protocol: whom the owner claims, and whom it wrongs."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from firstline.benchmark.contract.oracles import Coins
from firstline.benchmark.core.contracts import Context, Defense, Extraction
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import innermost
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols import extraction, ownership
from firstline.defenses.dataset_inference import DatasetInference
from firstline.defenses.watermark import Watermark

CPU = torch.device("cpu")
TASK = Coins(test=50)
THREAT = "extraction/black/labels:100"


@dataclass(frozen=True)
class Hand(Extraction):
    """Hands in the module that it is told to."""

    name = "hand"
    needs = ("labels",)
    goals = ("labels",)
    made: ClassVar[list[nn.Module]] = []

    def extract(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> nn.Module:
        return self.made[-1]


@dataclass(frozen=True)
class Everybodys(Defense):
    """Claims whoever is asked."""

    name = "everybodys"

    def verify(self, suspect: Target, data: Data, ctx: Context) -> float:
        return 0.0


def fitted(layers):
    return Stack(layers).fit(TASK, TASK.load(None).train, Streams(0).child("blobs", "fit"), CPU).system


def values(found):
    return {name: metric.value for name, metric in found.metrics.items()}


@pytest.mark.parametrize("defense", [Watermark(), DatasetInference()], ids=str)
def test_the_system_itself_is_claimed_and_innocents_are_not(make, defense):
    system = fitted((defense,))
    Hand.made.append(innermost(system).module)
    made = make(Hand(), THREAT, task=TASK, system=system, layers=(defense,))
    stolen = extraction.run(made.bench)
    told = values(stolen)
    assert told["claimed"] == 1
    assert told["copy_p"] < 1e-6
    assert told["own_p"] < 1e-6
    assert told["false_claims"] <= 0.1
    assert stolen.metrics["false_claims"].n == ownership.INNOCENTS == len(stolen.outcome.innocent_p)
    assert stolen.diagnostics["verification_queries"] > 0
    Hand.made.append(innermost(TASK.best()).module)
    learned = extraction.run(made.bench)
    assert values(learned)["claimed"] == 0
    assert np.array_equal(learned.outcome.innocent_p, stolen.outcome.innocent_p)


def test_a_test_that_claims_everybody_is_seen_through(make):
    Hand.made.append(innermost(TASK.best()).module)
    told = values(extraction.run(make(Hand(), THREAT, task=TASK, layers=(Everybodys(),)).bench))
    assert (told["claimed"], told["false_claims"]) == (1, 1)


def test_innocents_are_found_once_for_all_thieves(make, monkeypatch):
    Hand.made.append(innermost(TASK.best()).module)
    bench = make(Hand(), THREAT, task=TASK, layers=(Everybodys(),)).bench
    first = extraction.run(bench)
    monkeypatch.setattr(ownership, "innocents", lambda bench: pytest.fail("fitted again"))
    assert values(extraction.run(bench)) == values(first)


def test_innocents_have_half_of_the_thiefs_data_each_and_none_of_the_owners(make):
    bench = make(Hand(), THREAT, task=TASK).bench
    one, other = (innermost(system).module for system in ownership.innocents(bench)[:2])
    aux, train = bench.splits.aux, bench.splits.train
    with torch.no_grad():
        right, strange = ((one(data.x).argmax(1) == data.y).double().mean() for data in (aux, train))
        assert not torch.equal(one(aux.x), other(aux.x))
    assert right == pytest.approx(0.75, abs=0.1)  # all of its half, and a coin's share of the other
    assert strange == pytest.approx(0.5, abs=0.1)


def test_a_defense_that_tests_nothing_has_no_such_figures(make):
    Hand.made.append(innermost(TASK.best()).module)
    found = extraction.run(make(Hand(), THREAT, task=TASK).bench)
    assert found.outcome.copy_p is None
    assert not {"claimed", "false_claims", "copy_p", "own_p"} & set(found.metrics)
    assert "verification_queries" not in found.diagnostics


def test_claims_follow_from_the_p_values_alone():
    told = ownership.measure(np.array([0.01]), np.array([0.5]), np.array([0.009, 0.011, 0.5, 1.0]))
    assert {name: metric.value for name, metric in told.items()} == {
        "claimed": 1,
        "false_claims": 0.25,
        "copy_p": 0.01,
        "own_p": 0.5,
    }

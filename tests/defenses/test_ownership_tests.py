"""Ownership tests: known p-values, right ones for whoever knows nothing, and claims of what is one's own."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest, permutation_test
from torch import nn

from firstline.benchmark.contract.oracles import Blobs, Coins
from firstline.benchmark.core.contracts import Context
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.dataset_inference import DatasetInference, later
from firstline.defenses.watermark import Watermark, tail

CPU = torch.device("cpu")
TASK = Coins()
TRAIN = TASK.load(None).train
THREAT = Threat.parse("extraction/black/labels:1m")


def door(suspect: System) -> Target:
    return Target(suspect, THREAT, space=TASK.space, classes=TASK.classes, rng=Streams(0))


def verdict(defense, suspect: System, data: Data = TRAIN, seed: int = 0) -> float:
    return defense.verify(door(suspect), data, Context(TASK, Streams(seed), CPU))


@pytest.mark.parametrize(("right", "count", "classes"), [(0, 5, 10), (3, 5, 10), (7, 100, 30), (60, 100, 2)])
def test_a_watermarks_p_value_is_the_binomial_tail(right, count, classes):
    assert tail(right, count, classes) == pytest.approx(binom.sf(right - 1, count, 1 / classes), rel=1e-9)


def test_mann_and_whitneys_p_value_is_nearly_that_of_all_permutations_with_ties():
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 8, 40) + draw.integers(0, 2, 40), draw.integers(0, 8, 30)

    def rank_sum(a, b, axis):
        ranks = (a[..., :, None] > b[..., None, :]) + 0.5 * (a[..., :, None] == b[..., None, :])
        return ranks.sum((-1, -2))

    exact = permutation_test(
        (first, second), rank_sum, vectorized=True, n_resamples=20_000, alternative="greater", rng=draw
    ).pvalue
    assert later(torch.tensor(first), torch.tensor(second)) == pytest.approx(exact, abs=0.01)


def test_nothing_is_larger_where_all_is_equal():
    assert later(torch.ones(5, dtype=torch.int64), torch.ones(3, dtype=torch.int64)) == 1


def test_lots_that_an_innocent_knows_nothing_of_give_uniform_p_values():
    innocent = Blobs().best()
    task, train = Blobs(), Blobs().load(None).train
    found = [
        DatasetInference(walks=1).verify(
            Target(innocent, THREAT, space=task.space, classes=2, rng=Streams(0)),
            train,
            Context(task, Streams(seed), CPU),
        )
        for seed in range(200)
    ]
    assert kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.04)


@pytest.mark.parametrize("natural", [False, True])
def test_no_answers_are_likelier_than_they_should_be_to_agree_with_labels_of_chance(natural):
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    for suspect in (Blobs().best(), Bare(constant)):
        found = np.array(
            [verdict(Watermark(count=60, natural=natural), suspect, seed=seed) for seed in range(200)]
        )
        for level in (0.05, 0.2, 0.5):  # of 60 answers few p-values are possible: at most uniform
            assert np.mean(found <= level) <= level + 3 * (level * (1 - level) / 200) ** 0.5


@pytest.mark.parametrize(
    "defense", [Watermark(), Watermark(natural=True), DatasetInference()], ids=["noise", "rows", "inference"]
)
def test_what_was_stolen_as_it_is_is_claimed_and_what_was_made_from_other_lots_is_not(defense):
    own = Stack((defense,)).fit(TASK, TRAIN, Streams(0), CPU).system
    layer = Streams(0).child("collect", defense.name)
    mine, theirs = (defense.verify(door(own), TRAIN, Context(TASK, lot, CPU)) for lot in (layer, Streams(1)))
    assert mine < 1e-6
    assert theirs > 0.01


@pytest.mark.parametrize(("natural", "moved"), [(False, True), (True, False)])
def test_triggers_take_the_place_of_rows_under_their_ids(natural, moved):
    seen = Watermark(count=10, natural=natural).collect(TRAIN, Context(TASK, Streams(0), CPU))
    changed = (seen.x != TRAIN.x).flatten(1).any(1)
    assert torch.equal(seen.ids, TRAIN.ids)
    assert int(changed.sum()) == (10 if moved else 0)
    assert 0 < int((seen.y != TRAIN.y).sum()) <= 10
    assert TASK.space.check(seen.x) is None


def test_rows_that_are_held_out_are_not_trained_on():
    seen = DatasetInference(held=0.25).collect(TRAIN, Context(TASK, Streams(0), CPU))
    assert len(seen) == 192
    assert torch.equal(seen.ids, seen.ids.sort().values)
    other = DatasetInference(held=0.25).collect(TRAIN, Context(TASK, Streams(1), CPU))
    assert not torch.equal(seen.ids, other.ids)


def test_rows_stand_for_as_long_as_their_label_does():
    class Patient(System):
        """Answers with class 1 so many times, and then never again."""

        def __init__(self, times: int) -> None:
            super().__init__()
            self.calls, self.times = itertools.count(1), times

        def respond(self, x, rng):
            return Blobs().best().respond(torch.full_like(x, float(next(self.calls) <= self.times)), rng)

    row = TRAIN.rows(TRAIN.y == 1).rows(torch.arange(1))
    inference = DatasetInference(walks=1, steps=5)
    for times, stood in ((0, 0), (1, 1), (3, 3), (9, 6)):
        assert inference._stood(door(Patient(times)), row, torch.Generator()).tolist() == [stood]


@pytest.mark.parametrize(
    ("defense", "said"),
    [
        (Watermark(count=0), "count is at least 1"),
        (Watermark(count=200), "at most half of the 256 training rows"),
        (DatasetInference(held=0.0), "held and reach are shares"),
        (DatasetInference(held=1.0), "leaves a row on either side of 256"),
        (DatasetInference(walks=0), "at least 1"),
    ],
)
def test_settings_that_leave_nothing_to_test_are_told(defense, said):
    with pytest.raises(FirstlineError, match=said):
        defense.collect(TRAIN, Context(TASK, Streams(0), CPU))

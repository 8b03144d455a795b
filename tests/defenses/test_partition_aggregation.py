"""The certificate of partition aggregation, against every poison that there is on small cases."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.defenses.deep_partition_aggregation import (
    DeepPartitionAggregation,
    Voters,
    places,
    poison_radius,
    ridge,
)
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
DIGITS = Digits()
SPLITS = DIGITS.load(None)


def tally(ballots: tuple[int, ...], classes: int) -> Tensor:
    return torch.bincount(torch.tensor(ballots), minlength=classes)[None]


def answer(ballots: tuple[int, ...], classes: int) -> int:
    counts = [ballots.count(c) for c in range(classes)]
    return counts.index(max(counts))  # the smaller class in a tie


def fewest_changes(ballots: tuple[int, ...], classes: int) -> int:
    """How many ballots must change for another answer, by trying them all."""
    before = answer(ballots, classes)
    others = (o for o in product(range(classes), repeat=len(ballots)) if answer(o, classes) != before)
    return min(sum(a != b for a, b in zip(ballots, o, strict=True)) for o in others)


@pytest.mark.parametrize(("voters", "classes"), [(1, 2), (4, 2), (5, 2), (4, 3), (5, 3), (3, 4)])
def test_the_radius_is_the_largest_that_is_true(voters, classes):
    for ballots in product(range(classes), repeat=voters):
        labels, radii = poison_radius(tally(ballots, classes))
        assert int(labels[0]) == answer(ballots, classes)
        assert int(radii[0]) == fewest_changes(ballots, classes) - 1


class Plane(Blobs):
    """Nine possible inputs, two classes."""

    space = InputSpace((2,))
    classes = 2


GRID = torch.tensor(list(product((0.0, 0.5, 1.0), repeat=2)))
SEVEN = DeepPartitionAggregation(partitions=7, penalty=0.1)


def fitted(
    x: Tensor, y: Tensor, defense: DeepPartitionAggregation = SEVEN, task: Blobs | Digits | None = None
) -> Voters:
    task = task or Plane()
    module = defense.train(defense.build(task), Data.of(x, y), Context(task, Streams(0), CPU))
    assert isinstance(module, Voters)
    return module


def poisoned(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """All training sets that are one row away: with a row more, a row less, or another label."""
    for row in GRID:
        for label in (0, 1):
            yield torch.cat([x, row[None]]), torch.cat([y, torch.tensor([label])])
    for row in range(len(x)):
        rest = torch.arange(len(x)) != row
        yield x[rest], y[rest]
        yield x, torch.where(rest, y, 1 - y)


@pytest.fixture(scope="module")
def small() -> tuple[Tensor, Tensor]:
    x = GRID.repeat(4, 1)
    return x, (x.sum(1) > 0.9).long()


def test_no_poison_within_its_radius_changes_an_answer(small):
    labels, radii = fitted(*small).certified(GRID)
    assert (radii >= 1).any()
    changed = torch.zeros(9, dtype=torch.bool)
    once = list(poisoned(*small))
    for x, y in once:
        now = fitted(x, y).certified(GRID)[0] != labels
        assert not (now & (radii >= 1)).any()
        changed |= now
    for x, y in once[::7]:
        for again in poisoned(x, y):
            now = fitted(*again).certified(GRID)[0] != labels
            assert not (now & (radii >= 2)).any()
            changed |= now
    assert changed.any()  # what is not proved does change: the test can fail


def test_one_row_of_poison_changes_one_voter(small):
    before = fitted(*small).weight
    for x, y in poisoned(*small):
        after = fitted(x, y).weight
        assert int((before != after).flatten(1).any(1).sum()) <= 1


def test_the_order_of_the_rows_does_not_count():
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    defense = DeepPartitionAggregation()
    first = fitted(SPLITS.train.x, SPLITS.train.y, defense, DIGITS).state_dict()
    again = fitted(SPLITS.train.x[order], SPLITS.train.y[order], defense, DIGITS).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_partitions_are_by_content_and_about_equally_large():
    found = [place for place, _ in places(SPLITS.train.x, 10)]
    assert [place for place, _ in places(SPLITS.train.x.flip(0), 10)] == found[::-1]
    assert 70 < min(np.bincount(found)) <= max(np.bincount(found)) < 130


def test_a_partition_without_rows_votes_for_the_first_class():
    voters = fitted(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 1]))
    assert voters.votes(GRID).tolist() == [[6, 1]] * 9


@pytest.mark.parametrize("rows", [3, 40], ids=["dual", "primal"])
def test_the_weights_are_those_of_scikit_learn(rows):
    rng = np.random.default_rng(0)
    points, targets = rng.normal(size=(rows, 5)), rng.normal(size=(rows, 3))
    expected = Ridge(alpha=0.7, fit_intercept=False).fit(points, targets).coef_.T
    found = ridge(torch.from_numpy(points), torch.from_numpy(targets), 0.7)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_the_system_answers_as_the_vote_does():
    system = Stack((DeepPartitionAggregation(),)).fit(DIGITS, SPLITS.train, Streams(0), CPU).system
    voters = system.inner.module
    labels, radii = voters.certified(SPLITS.test.x)
    proved = system.certify(SPLITS.test.x, "rows", torch.Generator())
    assert torch.equal(proved.labels, labels)
    assert torch.equal(proved.radii, radii.float())
    assert system.certify(SPLITS.test.x, "linf", torch.Generator()) is None
    assert torch.equal(system.respond(SPLITS.test.x, torch.Generator()).labels, labels)
    right = labels == SPLITS.test.y
    assert float(right.float().mean()) > 0.88
    assert float((right & (radii >= 9)).float().mean()) > 0.6
    alone = (voters.scores(SPLITS.test.x).argmax(2) == SPLITS.test.y[:, None]).float().mean()
    assert float(alone) < 0.7  # what the vote is worth


def test_ties_go_to_the_smaller_class_in_the_logits_too():
    voters = Voters(InputSpace((2,)), 3, 4)
    voters.bias[:2, 2] = voters.bias[2:, 1] = 1.0
    assert voters.votes(GRID[:1]).tolist() == [[0, 2, 2]]
    assert int(voters(GRID[:1]).argmax(1)) == 1


@pytest.mark.parametrize(
    "defense", [DeepPartitionAggregation(partitions=0), DeepPartitionAggregation(penalty=0.0)], ids=str
)
def test_settings_out_of_range_are_told(defense):
    with pytest.raises(FirstlineError, match="partitions must be at least 1, and penalty above 0"):
        defense.build(DIGITS)

"""Poisoning attacks: whose labels they change, and to what."""

import pytest
import torch

from firstline.attacks.poisoning.random_label_flip import RandomLabelFlip
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat

THREAT = Threat.parse("poisoning/white/availability:10%")


class FourClasses(Blobs):
    classes = 4


def poisoned(budget: int, seed: int = 0, n: int = 400):
    train = Data(torch.rand(n, 1), torch.arange(n) % 4, 1000 + 2 * torch.arange(n))
    return train, RandomLabelFlip().poison(train, FourClasses(), budget, THREAT, Streams(seed))


@pytest.mark.parametrize("budget", [0, 1, 100, 400, 900])
def test_label_flip_changes_exactly_its_budget_or_all_that_it_holds(budget):
    train, made = poisoned(budget)
    changed = made.data.y != train.y
    assert int(changed.sum()) == min(budget, 400)
    assert sorted(train.ids[changed].tolist()) == sorted(made.poisoned.tolist())
    assert torch.equal(made.data.x, train.x)
    assert torch.equal(made.data.ids, train.ids)


def test_label_flip_draws_rows_and_labels_evenly():
    train, made = poisoned(4000, n=8000)
    shift = (made.data.y - train.y)[made.data.y != train.y] % 4
    assert set(shift.tolist()) == {1, 2, 3}
    assert shift.bincount()[1:].div(4000).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    rows = (made.poisoned - 1000) // 2
    assert float(rows.float().mean()) == pytest.approx(4000, abs=120)


def test_label_flip_is_the_same_for_the_same_seed_and_another_for_another():
    _, first = poisoned(40)
    _, again = poisoned(40)
    _, other = poisoned(40, seed=1)
    assert torch.equal(first.data.y, again.data.y)
    assert not torch.equal(first.data.y, other.data.y)


def test_label_flip_leaves_the_given_labels_alone():
    train, _ = poisoned(100)
    assert torch.equal(train.y, torch.arange(400) % 4)

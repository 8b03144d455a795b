"""Chosen label flips: which labels they change, the model that chooses, and what it costs a model like it."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from firstline.attacks.poisoning.label_flip_far_first import LabelFlipFarFirst
from firstline.attacks.poisoning.label_flip_loss_max import LabelFlipLossMax
from firstline.attacks.poisoning.label_flip_pair import LabelFlipPair
from firstline.attacks.poisoning.random_label_flip import RandomLabelFlip
from firstline.attacks.poisoning.softmax import fit_softmax
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

THREAT = Threat.parse("poisoning/gray/availability:10%,train=100%")
FLIPS = [LabelFlipPair(), LabelFlipFarFirst(), LabelFlipLossMax()]


class Three(Blobs):
    classes = 3


def points(n: int = 90) -> Data:
    """Three clouds on a line, class 1 in the middle."""
    y = torch.arange(n) % 3
    x = 0.2 + 0.3 * y + 0.04 * torch.randn(n, generator=torch.Generator().manual_seed(0))
    return Data(x[:, None], y, 7 + 3 * torch.arange(n))


def poisoned(attack, budget, data=None, task=None, seed=0):
    return attack.poison(data or points(), task or Three(), budget, THREAT, Streams(seed))


@pytest.mark.parametrize("attack", FLIPS, ids=str)
@pytest.mark.parametrize("budget", [0, 1, 30])
def test_exactly_the_budget_of_labels_differs_and_nothing_else(attack, budget):
    data = points()
    made = poisoned(attack, budget, data)
    changed = made.data.y != data.y
    assert int(changed.sum()) == budget
    assert sorted(data.ids[changed].tolist()) == sorted(made.poisoned.tolist())
    assert torch.equal(made.data.x, data.x)
    assert torch.equal(made.data.ids, data.ids)
    assert torch.equal(data.y, points().y)
    assert set(made.data.y.tolist()) <= {0, 1, 2}
    assert made.trigger is None


@pytest.mark.parametrize("attack", FLIPS, ids=str)
def test_a_budget_beyond_what_is_held_is_an_error(attack):
    with pytest.raises(FirstlineError, match=r"the budget is 91 rows, and the attacker holds (30|90) "):
        poisoned(attack, 91)


def test_pair_flips_go_from_the_source_to_the_target():
    data = points()
    made = poisoned(LabelFlipPair(source=2, target=1), 12, data)
    rows = torch.isin(data.ids, made.poisoned)
    assert set(data.y[rows].tolist()) == {2}
    assert set(made.data.y[rows].tolist()) == {1}
    other = poisoned(LabelFlipPair(source=2, target=1), 12, data, seed=1)
    assert set(other.poisoned.tolist()) != set(made.poisoned.tolist())


@pytest.mark.parametrize("pair", [(0, 0), (0, 3), (-1, 1)])
def test_pair_flips_need_two_classes_of_the_task(pair):
    with pytest.raises(
        FirstlineError, match=f"two of the classes 0..2 of blobs, got {pair[0]} and {pair[1]}"
    ):
        poisoned(LabelFlipPair(*pair), 1)


def test_far_first_takes_the_rows_farthest_on_their_own_side_and_gives_them_the_next_class():
    y = torch.arange(40) % 2
    x = torch.linspace(0, 0.3, 40) + 0.6 * y  # within a class, later rows lie further to the right
    data = Data.of(x[:, None], y)
    made = poisoned(LabelFlipFarFirst(), 4, data, Blobs())
    # The boundary is near the middle, so the farthest are the left end of class 0 and the right end of class 1.
    assert sorted(made.poisoned.tolist()) == [0, 2, 37, 39]
    ends = points()
    made = poisoned(LabelFlipFarFirst(decay=1e-4), 10, ends)
    rows = torch.isin(ends.ids, made.poisoned)
    assert set(ends.y[rows].tolist()) <= {0, 2}
    assert set(made.data.y[rows].tolist()) == {1}


def test_without_rounds_the_largest_loss_of_two_classes_is_the_largest_margin():
    splits = BreastCancer().load(None)
    far = poisoned(LabelFlipFarFirst(), 40, splits.train, BreastCancer())
    loss = poisoned(LabelFlipLossMax(rounds=0), 40, splits.train, BreastCancer())
    assert torch.equal(far.data.y, loss.data.y)


def test_loss_max_flips_to_the_least_likely_class_first():
    data = points()
    made = poisoned(LabelFlipLossMax(rounds=0), 10, data)
    rows = torch.isin(data.ids, made.poisoned)
    assert set(zip(data.y[rows].tolist(), made.data.y[rows].tolist(), strict=True)) <= {(0, 2), (2, 0)}


def accuracy(attack, task, share):
    splits = task.load(None)
    data = splits.train
    if attack is not None:
        data = poisoned(attack, int(share * len(data)), data, task).data
    model = fit_softmax(data.x.flatten(1), data.y, task.classes, 1e-3)
    return float((model.logits(splits.test.x.flatten(1)).argmax(1) == splits.test.y).float().mean())


@pytest.mark.parametrize("task", [Digits(), BreastCancer()], ids=str)
def test_chosen_flips_cost_more_than_random_ones_and_rounds_more_still(task):
    clean, chance, once, often = (
        accuracy(attack, task, 0.2)
        for attack in (None, RandomLabelFlip(), LabelFlipLossMax(rounds=0), LabelFlipLossMax())
    )
    assert clean - chance < 0.06
    assert clean - once > 0.15
    assert often < once - 0.03


def test_softmax_regression_is_scikit_learns():
    splits = BreastCancer().load(None)
    x, y = splits.train.x.double(), splits.train.y
    ours = fit_softmax(x, y, 2, 0.01)
    theirs = LogisticRegression(C=2 / (0.01 * len(x)), tol=1e-10, max_iter=5000).fit(x.numpy(), y.numpy())
    # Two classes: its weights are the difference of ours, whose squares sum to half of its square.
    np.testing.assert_allclose((ours.weights[1] - ours.weights[0]).numpy(), theirs.coef_[0], atol=1e-4)
    assert float(ours.bias[1] - ours.bias[0]) == pytest.approx(float(theirs.intercept_[0]), abs=1e-4)


def test_softmax_regression_is_at_a_minimum_wherever_it_starts():
    digits = Digits().load(None).train
    x, y = digits.x.flatten(1).double(), digits.y
    model = fit_softmax(x, y, 10, 0.01)
    slope = (model.logits(x).softmax(1) - torch.nn.functional.one_hot(y, 10)) / len(x)
    assert float((slope.T @ x + 0.01 * model.weights).abs().max()) < 1e-6
    again = fit_softmax(x, y, 10, 0.01, start=fit_softmax(x[:500], y[:500], 10, 0.01))
    torch.testing.assert_close(again.weights, model.weights, atol=1e-5, rtol=0)

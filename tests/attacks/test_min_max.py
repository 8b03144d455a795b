"""The minimax attack: its best point in closed form, what it adds, and that filters let it pass."""

import math

import pytest
import torch
from sklearn.svm import LinearSVC

from firstline.attacks.poisoning.min_max import Feasible, MinMax, feasible
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

THREAT = Threat.parse("poisoning/gray/availability:10%,train=100%")
TASK = BreastCancer()
TRAIN = TASK.load(None).train


def poisoned(attack, budget, task=TASK, data=TRAIN, seed=0):
    return attack.poison(data, task, budget, THREAT, Streams(seed))


@pytest.mark.parametrize("reach", [0.05, 0.4, 2.0])
def test_the_best_point_is_feasible_and_no_other_feasible_point_is_better(reach):
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(4, generator=generator), dim=0).double()
    one = Feasible(torch.full((4,), 0.5).double(), axis, torch.tensor(1.0), torch.tensor(reach))
    for _ in range(10):
        weights = torch.randn(4, generator=generator).double()
        best = one.lowest(weights) - one.mean
        assert float(best.norm()) <= 1 + 1e-9
        assert abs(float(best @ axis)) <= reach + 1e-9
        others = torch.nn.functional.normalize(torch.randn(20_000, 4, generator=generator).double(), dim=1)
        others = others * torch.rand(20_000, 1, generator=generator).double() ** 0.1
        others = others[(others @ axis).abs() <= reach]
        least = float((others @ weights).min())
        assert float(best @ weights) <= least + 1e-9
        assert float(best @ weights) >= least - 0.35 * float(weights.norm())  # and they come near it


def test_what_passes_is_the_quantile_of_each_class():
    x, y = TRAIN.x.double(), TRAIN.y
    for label, one in enumerate(feasible(x, y, 0.7)):
        away = x[y == label] - one.mean
        assert float(one.axis.norm()) == pytest.approx(1)
        for lengths, most in ((away.norm(dim=1), one.radius), ((away @ one.axis).abs(), one.reach)):
            assert float((lengths <= most).double().mean()) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("budget", [0, 1, 45])
def test_exactly_the_budget_of_rows_is_added_and_nothing_changed(budget):
    made = poisoned(MinMax(steps=60), budget)
    assert torch.equal(made.data.x[: len(TRAIN)], TRAIN.x)
    assert torch.equal(made.data.y[: len(TRAIN)], TRAIN.y)
    assert made.data.ids[len(TRAIN) :].tolist() == made.poisoned.tolist() == [-1 - i for i in range(budget)]
    assert TASK.space.check(made.data.x) is None


class Shifted(Blobs):
    """Two numbers in ranges of their own, one of them on a grid."""

    modality = "table"
    space = InputSpace(shape=(2,), low=(-4.0, 100.0), high=(4.0, 300.0), grid=(0.0, 1.0))


def test_poisons_pass_the_filters_in_whatever_units_the_table_is():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    scaled = 0.35 + 0.3 * y[:, None] + 0.05 * torch.randn(400, 2, generator=generator)
    data = Data.of(Shifted.space.round(scaled * torch.tensor([8.0, 200]) + torch.tensor([-4.0, 100])), y)
    added = poisoned(MinMax(steps=300), 40, Shifted(), data).data.rows(torch.arange(400, 440))
    torch.testing.assert_close(Shifted.space.round(added.x), added.x)
    unit = lambda x: (x.double() - torch.tensor([-4.0, 100]).double()) / torch.tensor([8.0, 200]).double()  # noqa: E731
    for label, one in enumerate(feasible(unit(data.x), y, 0.7)):
        away = unit(added.x[added.y == label]) - one.mean
        assert (away.norm(dim=1) <= one.radius + 0.005).all()  # half a grid step
        assert ((away @ one.axis).abs() <= one.reach + 0.005).all()
    assert set(added.y.tolist()) == {0, 1}


def error(data: Data) -> float:
    test = TASK.load(None).test
    machine = LinearSVC(C=1.0, loss="hinge", max_iter=20_000, random_state=0).fit(
        data.x.numpy(), data.y.numpy()
    )
    return 1 - float(machine.score(test.x.numpy(), test.y.numpy()))


def test_it_costs_a_linear_classifier_more_than_it_costs_the_filters():
    made = poisoned(MinMax(rho=15.0), 30).data
    assert error(made) > error(TRAIN) + 0.04
    sets = feasible(made.x.double(), made.y, 0.95)
    added = made.rows(made.ids < 0)
    passed = [
        float((x.double() - sets[label].mean).norm() <= sets[label].radius)
        for x, label in zip(added.x, added.y.tolist(), strict=True)
    ]
    assert math.fsum(passed) == len(passed)


def test_the_classifiers_game_is_the_papers_first_steps():
    x = torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.8, 1.0], [1.0, 1.0]]).double()
    y = torch.tensor([0, 0, 1, 1])
    points, labels = MinMax(steps=2, rate=0.5, rho=100.0)._moves(x, y, 0.5)
    # At weights 0 every class fits equally badly, at its mean: class 0 is taken.
    assert points[0].tolist() == pytest.approx([0.1, 0.0])
    assert labels.tolist()[0] == 0
    # Then z = mean of y x over the rows, plus half of the poison's: weights rate * z, bias rate * (0 - 0.5).
    z = torch.tensor([(0.8 + 1.0 - 0.0 - 0.2) / 4 - 0.05, 0.5]).double()
    weights, bias = 0.5 * z, -0.25
    sets = feasible(x, y, 0.7)
    margins = [
        sign * float(one.lowest(sign * weights) @ weights + bias)
        for sign, one in zip((-1, 1), sets, strict=True)
    ]
    worst = margins.index(min(margins))
    assert labels.tolist()[1] == worst
    torch.testing.assert_close(points[1], sets[worst].lowest((2 * worst - 1) * weights))


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (Digits(), TRAIN, "min-max is for two classes, and digits has 10"),
        (TASK, TRAIN.rows(TRAIN.y == 0), "needs rows of both classes; raise the threat's train="),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(task, data, message):
    with pytest.raises(FirstlineError, match=message):
        poisoned(MinMax(), 1, task, data)

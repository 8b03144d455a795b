"""Backdoors: which rows and pixels they touch, what their triggers are, and what they refuse to do."""

from dataclasses import replace

import pytest
import torch

from firstline.attacks.poisoning.badnets import BadNets
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

THREAT = Threat.parse("poisoning/gray/backdoor:5%,train=100%")
IMAGES = [BadNets()]
TASK = Digits()


class Wide(Blobs):
    """Colour images that are wider than high, on the grid of 8-bit images, in a range of their own."""

    classes = 3
    space = InputSpace(shape=(3, 6, 9), low=-1.0, high=2.0, grid=1 / 255)


def wide(n: int = 300) -> Data:
    x = torch.rand(n, 3, 6, 9, generator=torch.Generator().manual_seed(0)) * 3 - 1
    return Data(Wide.space.round(x), torch.arange(n) % 3, 50 + 2 * torch.arange(n))


def poisoned(attack, budget=60, task=None, data=None, seed=0):
    return attack.poison(data or wide(), task or Wide(), budget, THREAT, Streams(seed))


@pytest.mark.parametrize("attack", IMAGES, ids=str)
@pytest.mark.parametrize("budget", [0, 1, 60])
def test_exactly_the_budget_is_changed_and_listed_and_nothing_else(attack, budget):
    data = wide()
    made = poisoned(attack, budget, data=data)
    changed = (made.data.y != data.y) | (made.data.x != data.x).flatten(1).any(1)
    assert int(changed.sum()) == budget
    assert sorted(data.ids[changed].tolist()) == sorted(made.poisoned.tolist())
    assert torch.equal(made.data.ids, data.ids)
    assert torch.equal(data.x, wide().x)
    assert torch.equal(data.y, wide().y)


@pytest.mark.parametrize("attack", IMAGES, ids=str)
def test_a_larger_budget_takes_the_same_rows_and_more(attack):
    few, many = poisoned(attack, 12), poisoned(attack, 60)
    assert torch.isin(few.poisoned, many.poisoned).all()
    assert not torch.equal(poisoned(attack, 12, seed=1).poisoned, few.poisoned)


@pytest.mark.parametrize("attack", IMAGES, ids=str)
def test_a_trigger_is_the_same_for_a_row_in_any_company_and_precision_and_stays_in_range(attack):
    x = wide().x
    trigger = poisoned(attack).trigger
    given = x.clone()
    whole = trigger(x)
    assert torch.equal(x, given)
    assert torch.equal(trigger(x[7:9]), whole[7:9])
    assert torch.equal(trigger(x), whole)
    assert whole.dtype == x.dtype
    assert trigger(x.double()).dtype == torch.float64
    torch.testing.assert_close(trigger(x.double()).float(), whole)
    assert Wide.space.check(whole) is None
    torch.testing.assert_close(Wide.space.round(whole), whole)
    assert len(trigger(x[:0])) == 0


@pytest.mark.parametrize("attack", IMAGES, ids=str)
def test_poisoned_rows_are_what_the_trigger_makes_of_them(attack):
    data = wide()
    made = poisoned(attack, data=data)
    rows = torch.isin(data.ids, made.poisoned) & (made.data.y == made.target_class)
    rows &= (made.data.x != data.x).flatten(1).any(1)
    assert torch.equal(made.data.x[rows], made.trigger(data.x[rows]))


@pytest.mark.parametrize("attack", IMAGES, ids=str)
def test_what_cannot_be_done_is_said_in_one_line(attack):
    with pytest.raises(FirstlineError, match=r"classes 0..2, so none is 3"):
        poisoned(replace(attack, target=3))
    with pytest.raises(FirstlineError, match=r"the budget is 250 rows, and the attacker holds (100|200)"):
        poisoned(attack, 250)
    cancer = BreastCancer()
    with pytest.raises(FirstlineError, match=r"needs images; breast-cancer holds table inputs"):
        poisoned(attack, 1, cancer, cancer.load(None).train)


@pytest.mark.parametrize(
    ("corner", "top", "left"),
    [("top-left", 1, 1), ("top-right", 1, 6), ("bottom-left", 3, 1), ("bottom-right", 3, 6)],
)
def test_badnets_patches_its_corner_and_no_other_pixel(corner, top, left):
    x = wide().x
    found = poisoned(BadNets(size=2, margin=1, corner=corner)).trigger(x)
    expected = x.clone()
    expected[:, :, top : top + 2, left : left + 2] = 2.0
    assert torch.equal(found, expected)


def test_badnets_is_idempotent_and_its_value_a_share_of_the_range_on_the_grid():
    x = wide().x
    trigger = poisoned(BadNets(size=1, value=0.5)).trigger
    assert torch.equal(trigger(trigger(x)), trigger(x))
    assert float(trigger(x)[0, 0, 5, 8]) == pytest.approx(0.5, abs=1 / 255)
    levels = (trigger(x)[0, 0, 5, 8] + 1) * 255
    assert float(levels) == pytest.approx(float(levels.round()), abs=1e-4)


@pytest.mark.parametrize(
    ("source", "labels"), [("others", {1, 2}), ("target", {0}), ("all", {0, 1, 2})], ids=str
)
def test_badnets_takes_rows_from_where_it_is_told(source, labels):
    data = wide()
    made = poisoned(BadNets(source=source), data=data)
    rows = torch.isin(data.ids, made.poisoned)
    assert int(rows.sum()) == 60
    assert set(data.y[rows].tolist()) == labels
    assert set(made.data.y[rows].tolist()) == {0}
    assert made.target_class == 0


def test_badnets_draws_rows_evenly():
    data = wide(6000)
    rows = (poisoned(BadNets(), 2000, data=data).poisoned - 50) // 2
    assert float(rows.float().mean()) == pytest.approx(3000, abs=100)
    assert data.y[rows].bincount().tolist() == pytest.approx([0, 1000, 1000], abs=80)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (BadNets(size=7), "a patch of 7 pixels, 0 from the edge, does not fit on 6x9 pixels"),
        (BadNets(size=4, margin=3), "a patch of 4 pixels, 3 from the edge, does not fit"),
        (BadNets(size=0), "a patch of 0 pixels"),
        (BadNets(margin=-1), "a patch of 3 pixels, -1 from the edge"),
        (BadNets(corner="middle"), "no corner is called 'middle'"),
        (BadNets(source="other"), "no source of poisoned rows is called 'other'; did you mean 'others'?"),
    ],
)
def test_badnets_refuses_patches_that_do_not_fit(attack, message):
    with pytest.raises(FirstlineError, match=message):
        poisoned(attack)


def success(attack, budget: int, device_rows: int = 500) -> tuple[float, float, float]:
    """Accuracy, attack success rate, and that rate of the clean network, of an MLP on digits."""
    splits = TASK.load(None)
    made = poisoned(attack, budget, TASK, splits.train)
    rates = []
    test = splits.test.rows(torch.arange(device_rows))
    others = test.rows(test.y != made.target_class)
    for data in (made.data, splits.train):
        build = TASK.architectures["mlp"].build
        module = train(initialise(build, Streams(0)), data, Recipe(20, 64, 3e-3), Streams(0))
        with torch.no_grad():
            hit = module(made.trigger(others.x)).argmax(1) == made.target_class
            rates.append(
                (float((module(test.x).argmax(1) == test.y).float().mean()), float(hit.float().mean()))
            )
    return rates[0][0], rates[0][1], rates[1][1]


def test_badnets_implants_a_backdoor_that_clean_accuracy_does_not_show():
    accuracy, rate, floor = success(BadNets(), 50)
    assert accuracy > 0.93
    assert rate > 0.9
    assert floor < 0.1

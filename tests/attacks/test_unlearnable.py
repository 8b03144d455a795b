"""Unlearnable data: the noise that it carries, its bound, and what is learned from it."""

import pytest
import torch

from firstline.attacks.poisoning.lsp import LSP
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

THREAT = Threat.parse("poisoning/gray/availability:100%,train=100%")


class Grey(Blobs):
    classes = 3
    space = InputSpace(shape=(2, 10, 13), grid=1 / 255)


def grey(n: int = 90) -> Data:
    x = torch.rand(n, 2, 10, 13, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    return Data(Grey.space.round(x), torch.arange(n) % 3, 5 + torch.arange(n))


def poisoned(attack, budget=90, task=None, data=None):
    return attack.poison(data or grey(), task or Grey(), budget, THREAT, Streams(0))


@pytest.mark.parametrize("budget", [0, 1, 50, 90])
def test_exactly_the_budget_of_rows_changes_within_eps_and_no_label(budget):
    data = grey()
    made = poisoned(LSP(eps=8 / 255), budget, data=data)
    moved = (made.data.x - data.x).abs().flatten(1).amax(1)
    assert int((moved > 0).sum()) == budget
    assert sorted(data.ids[moved > 0].tolist()) == sorted(made.poisoned.tolist())
    assert float(moved.max()) <= 8 / 255 + 1e-6
    assert torch.equal(made.data.y, data.y)
    assert torch.equal(Grey.space.round(made.data.x), made.data.x)


def test_the_noise_is_one_corner_of_the_cube_per_class_in_blocks():
    data = grey()
    noise = poisoned(LSP(eps=20 / 255, cells=3, spread=0.0), data=data).data.x - data.x
    for label in range(3):
        own = noise[data.y == label]
        torch.testing.assert_close(own, own[:1].expand_as(own))
        torch.testing.assert_close(own.abs(), torch.full_like(own, 20 / 255))
        block = own[0, :, :4, :5]  # rows 0 to 3 of 10 and columns 0 to 4 of 13 are the first of 3 x 3
        torch.testing.assert_close(block, block[:, :1, :1].expand_as(block))
    assert not torch.equal(noise[0] > 0, noise[1] > 0)


def test_a_linear_rule_tells_the_noise_of_classes_apart_and_not_the_noise_within_a_class():
    data = grey()
    noise = (poisoned(LSP(eps=20 / 255, spread=0.3), data=data).data.x - data.x).flatten(1)
    middles = torch.stack([noise[data.y == label].mean(0) for label in range(3)])
    assert torch.equal(torch.cdist(noise, middles).argmin(1), data.y)
    assert float(noise[data.y == 0].std(0).mean()) > 1 / 255


def test_what_is_trained_on_noisy_rows_alone_learns_the_noise_and_a_few_clean_ones_undo_it():
    task = Digits()
    splits = task.load(None)
    right = []
    for budget in (0, 1000, 800):
        data = poisoned(LSP(eps=0.25), budget, task, splits.train).data
        build = task.architectures["mlp"].build
        module = train(initialise(build, Streams(0)), data, Recipe(15, 64, 3e-3), Streams(0))
        right.append(float((module(splits.test.x).argmax(1) == splits.test.y).float().mean()))
    clean, all_noisy, most_noisy = right
    assert clean > 0.93
    assert all_noisy < 0.7
    assert most_noisy > 0.85


@pytest.mark.parametrize(
    ("attack", "task", "budget", "message"),
    [
        (LSP(cells=11), Grey(), 1, "11 cells a side on 10x13 pixels; change cells"),
        (LSP(cells=0), Grey(), 1, "0 cells a side"),
        (LSP(), Grey(), 91, "the budget is 91 rows, and the attacker holds 90 rows"),
        (LSP(), BreastCancer(), 1, "lsp needs images; breast-cancer holds table inputs"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(attack, task, budget, message):
    with pytest.raises(FirstlineError, match=message):
        poisoned(attack, budget, task)

"""MAD: the angle is that of real gradients, the budget is kept, and no simple rule turns gradients further."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, one_hot

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare
from firstline.defenses import prediction_poisoning
from firstline.defenses.prediction_poisoning import (
    MaximalDeviation,
    PredictionPoisoning,
    deviated,
    deviated_with_label,
)

BUDGETS = (0.0, 0.1, 0.5, 1.0, 2.0)
WAYS = (deviated, deviated_with_label)


def drawn(n: int, classes: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * classes + seed)
    return torch.softmax(spread * torch.randn(n, classes, generator=generator, dtype=torch.float64), 1)


def cosines(told: Tensor, shares: Tensor, believed: Tensor) -> Tensor:
    return cosine_similarity(believed - told, believed - shares, dim=-1)


def as_far(shares: Tensor, aims: Tensor, budget: float) -> Tensor:
    """On the way from shares to aims, as far as the budget goes."""
    way = aims - shares
    return shares + way * (budget / way.abs().sum(-1, keepdim=True)).clamp_max(1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("classes", [2, 4, 30])
def test_what_is_told_are_probabilities_within_the_budget(way, budget, classes):
    shares, believed = drawn(50, classes), drawn(50, classes, 1, 0.1)
    told = way(shares, believed, budget)
    torch.testing.assert_close(told.sum(1), torch.ones(50, dtype=torch.float64))
    assert (told >= 0).all()
    assert ((told - shares).abs().sum(1) <= budget + 1e-12).all()
    if way is deviated_with_label:
        assert (told.gather(1, shares.argmax(1)[:, None]).squeeze(1) >= told.amax(1) - 1e-12).all()
    if budget == 0:
        assert torch.equal(told, shares)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("budget", BUDGETS[1:])
def test_no_simple_rule_turns_the_gradient_further(way, budget):
    shares, believed = drawn(50, 6), drawn(50, 6, 1, 0.1)
    least = cosines(way(shares, believed, budget), shares, believed)
    assert (least < 1 - 1e-6).all()
    label, second = shares.topk(2, dim=1).indices.T
    top = one_hot(label, 6).double()
    if way is deviated:
        simple = {f"class {k}": one_hot(torch.full((50,), k), 6).double() for k in range(6)}
    else:
        uniform, both = torch.full_like(shares, 1 / 6), (top + one_hot(second, 6)) / 2
        simple = {"sure": top, "uniform": uniform, "the two likeliest": both}
    for name, aims in simple.items():
        reached = cosines(as_far(shares, aims, budget), shares, believed)
        assert (least <= reached + 1e-12).all(), name


def best_of_all_sets(shares: Tensor, believed: Tensor, budget: float) -> Tensor:
    classes = shares.shape[1]
    sets = torch.tensor(list(product([0.0, 1.0], repeat=classes)), dtype=torch.float64)
    aims = (sets / sets.sum(1, keepdim=True).clamp_min(1)).expand(len(shares), -1, -1)
    reached = cosines(as_far(shares[:, None], aims, budget), shares[:, None], believed[:, None])
    return torch.where(sets[:, shares.argmax(1)].T > 0, reached, torch.inf).amin(1)


@pytest.mark.parametrize("budget", BUDGETS[1:])
def test_of_few_classes_all_sets_are_tried_and_of_many_the_best_are_added(monkeypatch, budget):
    shares, believed = drawn(100, 5), drawn(100, 5, 1, 0.1)
    best = best_of_all_sets(shares, believed, budget)
    found = cosines(deviated_with_label(shares, believed, budget), shares, believed)
    torch.testing.assert_close(found, best)
    monkeypatch.setattr(prediction_poisoning, "EXHAUSTIVE", 4)
    added = cosines(deviated_with_label(shares, believed, budget), shares, believed)
    assert (added >= best - 1e-9).all()
    assert (added < best + 1e-9).double().mean() > 0.75
    assert (added - best).mean() < 0.02


def test_of_two_classes_gradients_turn_around_or_not_at_all():
    shares = torch.tensor([[0.9, 0.1]] * 3, dtype=torch.float64)
    believed = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    told = torch.stack([deviated_with_label(shares, believed, budget)[:, 0] for budget in (1.0, 0.2)])
    # Past 0.6 it points the other way: that takes more than 0.6 in l1, and 0.4 keeps the class nowhere.
    torch.testing.assert_close(told, torch.tensor([[0.5, 0.5, 0.9], [0.9] * 3], dtype=torch.float64))


def test_the_angle_is_that_of_the_gradients_on_the_last_layer():
    torch_rng = Streams(0).torch("network")
    hidden, last = nn.Linear(8, 5), nn.Linear(5, 4)
    with torch.no_grad():
        for parameter in [*hidden.parameters(), *last.parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=torch_rng))
    thief = nn.Sequential(hidden, nn.Tanh(), last).double()
    system = MaximalDeviation(Bare(nn.Sequential(nn.Linear(8, 4)).double()), thief, 0.5, True)
    x = torch.randn(6, 8, generator=torch_rng, dtype=torch.float64)
    shares = drawn(6, 4)
    told = system.told(shares, x, torch.Generator())

    assert torch.equal(told, deviated_with_label(shares, torch.softmax(thief(x), 1), 0.5))
    free = MaximalDeviation(Bare(thief), thief, 0.5, False).told(shares, x, torch.Generator())
    assert torch.equal(free, deviated(shares, torch.softmax(thief(x), 1), 0.5))

    def gradient(row: Tensor, y: Tensor) -> Tensor:
        loss = -(y * torch.log_softmax(thief(row[None])[0], 0)).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(last.parameters()))])

    measured = torch.stack(
        [
            cosine_similarity(gradient(*pair[:2]), gradient(pair[0], pair[2]), dim=0)
            for pair in zip(x, told, shares, strict=True)
        ]
    )
    torch.testing.assert_close(measured, cosines(told, shares, torch.softmax(thief(x), 1).detach()))


@pytest.mark.parametrize(("keep", "changed"), [(True, 0.0), (False, 0.1)])
def test_classes_stay_where_they_are_kept_and_change_where_not(keep, changed):
    task = Blobs(train=96)
    splits = task.load(None)
    defense = PredictionPoisoning(budget=1.5, keep_label=keep)
    system = Stack((defense,)).fit(task, splits.train, Streams(0), torch.device("cpu")).system
    x = splits.test.x
    with torch.no_grad():
        pair = [s.respond(x, torch.Generator()).labels for s in (system, system.inner)]
    share = float((pair[0] != pair[1]).double().mean())
    assert share == 0 if keep else share > changed


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(FirstlineError, match="budget must be at least 0"):
        PredictionPoisoning(budget=-0.1).deploy(Bare(nn.Identity()), Blobs())

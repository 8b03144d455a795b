"""Hidden triggers: what the objectives are, what is changed, and what a fresh network learns from it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from firstline.attacks.poisoning.gradient_matching import OBJECTIVES, GradientMatching
from firstline.benchmark.core.contracts import Architecture, initialise
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits
from firstline.tasks.networks import mlp

THREAT = Threat.parse("poisoning/gray/backdoor:6%,train=100%")


class Quick(Digits):
    """Digits with an MLP by default, which learns them in a second."""

    @property
    def architectures(self):
        return {"mlp": Architecture(lambda: mlp(64, 10), Recipe(20, 64, 3e-3))}


TASK = Quick()
SPLITS = TASK.load(None)


def poisoned(attack, budget=60, task=TASK, data=SPLITS.train, seed=0):
    return attack.poison(data, task, budget, THREAT, Streams(seed))


def success(made):
    """How often a network of other initial weights, trained on the poisoned rows, gives patched images the class."""
    module = train(initialise(TASK.default.build, Streams(9)), made.data, TASK.default.recipe, Streams(9))
    others = SPLITS.test.rows(SPLITS.test.y != made.target_class)
    with torch.no_grad():
        right = (module(SPLITS.test.x).argmax(1) == SPLITS.test.y).float().mean()
        return float((module(made.trigger(others.x)).argmax(1) == made.target_class).float().mean()), float(
            right
        )


@pytest.fixture(scope="module")
def made():
    """Sixty rows moved by gradient matching."""
    return poisoned(GradientMatching(eps=0.375, steps=100))


def test_rows_of_the_class_move_within_eps_and_keep_their_labels(made):
    data = SPLITS.train
    rows = torch.isin(data.ids, made.poisoned)
    moved = (made.data.x - data.x).abs().flatten(1).amax(1)
    assert int(rows.sum()) == 60
    assert torch.equal(moved > 0, rows)
    assert float(moved.max()) == pytest.approx(0.375, abs=1e-6)
    assert torch.equal(made.data.y, data.y)
    assert set(data.y[rows].tolist()) == {0}
    assert TASK.space.check(made.data.x) is None
    assert torch.equal(TASK.space.round(made.data.x), made.data.x)


def test_no_poisoned_row_shows_the_trigger_and_a_fresh_network_obeys_it(made):
    rows = torch.isin(made.data.ids, made.poisoned)
    patched = (made.trigger(made.data.x[rows]) == made.data.x[rows]).flatten(1).all(1)
    assert not patched.any()
    rate, right = success(made)
    assert rate > 0.8
    assert right > 0.93


def test_the_same_rows_moved_at_random_teach_nothing():
    rate, _ = success(poisoned(GradientMatching(eps=0.375, steps=1)))  # the first point is a random one
    assert rate < 0.3


def test_features_that_collide_do_less_to_a_network_trained_from_scratch(made):
    rate, _ = success(poisoned(GradientMatching(eps=0.375, steps=100, objective="collision")))
    assert 0.1 < rate < success(made)[0]


@pytest.fixture
def network():
    """A small network with two layers, of known weights."""
    return initialise(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), Streams(0)
    )


X = torch.tensor([[0.1, 0.9, 0.4], [0.7, 0.2, 0.3], [0.5, 0.5, 0.0]])
SHOWN = torch.tensor([[0.9, 0.9, 0.1], [0.2, 0.8, 0.6]])


def test_the_gradient_objective_is_one_less_the_cosine_of_the_gradients(network):
    gradients = []
    for x in (X, SHOWN):
        network.zero_grad()
        cross_entropy(network(x), torch.ones(len(x), dtype=torch.int64)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    expected = 1 - torch.cosine_similarity(*gradients, dim=0)
    network.zero_grad()
    objective = OBJECTIVES["gradient"](network, SHOWN, 1)
    assert float(objective(X).detach()) == pytest.approx(float(expected), abs=1e-6)
    assert float(objective(SHOWN).detach()) == pytest.approx(0, abs=1e-6)
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_the_feature_objectives_are_the_papers_distances(network):
    features, wanted = (network[2](network[1](x)).detach() for x in (X, SHOWN))
    pairs = (features - wanted[[0, 1, 0]]).square().sum(1).mean()
    assert float(OBJECTIVES["collision"](network, SHOWN, 1)(X).detach()) == pytest.approx(
        float(pairs), abs=1e-6
    )
    centre = wanted.mean(0)
    middle = (features.mean(0) - centre).square().sum() / centre.square().sum()
    assert float(OBJECTIVES["bullseye"](network, SHOWN, 1)(X).detach()) == pytest.approx(
        float(middle), abs=1e-6
    )


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_more_steps_lower_the_objective(objective):
    module = train(initialise(TASK.default.build, Streams(1)), SPLITS.train, Recipe(5, 64, 3e-3), Streams(1))
    values = []
    for steps in (1, 40):
        made = poisoned(GradientMatching(eps=0.375, steps=steps, objective=objective), 30)
        shown = made.trigger(SPLITS.train.x[SPLITS.train.y != 0][:100])
        rows = torch.isin(made.data.ids, made.poisoned)
        values.append(float(OBJECTIVES[objective](module, shown, 0)(made.data.x[rows]).detach()))
    assert values[1] < values[0]  # for another network too


@pytest.mark.parametrize(
    ("attack", "task", "budget", "message"),
    [
        (GradientMatching(objective="feature"), TASK, 1, "no objective is called 'feature'"),
        (GradientMatching(steps=0), TASK, 1, "steps and sources must be at least 1, got 0 and 100"),
        (GradientMatching(target=10), TASK, 1, r"classes 0..9, so none is 10"),
        (GradientMatching(size=9), TASK, 1, "a patch of 9 pixels"),
        (GradientMatching(), TASK, 300, "the budget is 300 rows, and the attacker holds"),
        (GradientMatching(), BreastCancer(), 1, "needs images; breast-cancer holds table inputs"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(attack, task, budget, message):
    with pytest.raises(FirstlineError, match=message):
        poisoned(attack, budget, task)


def test_without_rows_of_another_class_there_is_nothing_to_teach():
    with pytest.raises(FirstlineError, match="holds no row outside class 0; raise train="):
        poisoned(GradientMatching(), 1, data=SPLITS.train.rows(SPLITS.train.y == 0))


def test_an_empty_budget_changes_nothing():
    made = poisoned(GradientMatching(), 0)
    assert torch.equal(made.data.x, SPLITS.train.x)
    assert len(made.poisoned) == 0

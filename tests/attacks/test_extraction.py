"""Thieves by retraining: what each asks about, in which order, and what it makes of the answers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from firstline.attacks.extraction.active_k_center import ActiveKCenter, greedy_centers
from firstline.attacks.extraction.active_uncertainty import ActiveUncertainty
from firstline.attacks.extraction.copying import Answers, imitate
from firstline.attacks.extraction.data_free import DataFree, Generator, apart
from firstline.attacks.extraction.jacobian_augmentation import JacobianAugmentation
from firstline.attacks.extraction.knockoff_adaptive import KnockoffAdaptive, climbed, rewards
from firstline.attacks.extraction.own_labels import OwnLabels
from firstline.attacks.extraction.retraining import Retraining
from firstline.attacks.extraction.retraining_adaptive import RetrainingAdaptive, unsure
from firstline.attacks.extraction.retraining_line_search import RetrainingLineSearch
from firstline.attacks.extraction.retraining_marginal import RetrainingMarginal
from firstline.attacks.extraction.retraining_uniform import RetrainingUniform
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe

TASK = Blobs()
AUX = TASK.load(None).aux
QUICK = {"updates": 80, "epochs": 2}


class Kept(System):
    """The best classifier, which keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(TASK.best())
        self.asked: list[Tensor] = []

    def respond(self, x: Tensor, rng: torch.Generator):
        self.asked.append(x.clone())
        return self.inner.respond(x, rng)


def queries(attack, budget, goal="labels"):
    """What attack asks, in parts as it asks them."""
    threat = Threat.parse(f"extraction/black/{goal}:{budget},aux=yes")
    kept = Kept()
    target = Target(kept, threat, space=TASK.space, classes=2, rng=Streams(0), batch=10_000)
    attack.extract(target, AUX, threat, Streams(0))
    return kept.asked


def rows(x: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in x.flatten(1).tolist()}


OWN = rows(AUX.x)


@pytest.mark.parametrize("thief", [Retraining, ActiveKCenter, ActiveUncertainty, KnockoffAdaptive])
def test_one_s_own_rows_are_asked_about_once_each(thief):
    asked = torch.cat(queries(thief(**QUICK), 60))
    assert len(asked) == 60
    assert len(rows(asked)) == 60
    assert rows(asked) <= OWN


def test_a_thief_asks_no_more_than_it_has():
    assert len(torch.cat(queries(Retraining(**QUICK), 1000))) == len(AUX)


def test_marginal_queries_take_each_feature_from_some_row():
    asked = torch.cat(queries(RetrainingMarginal(**QUICK), 300)).flatten(1)
    assert not rows(asked) & OWN
    assert all(torch.isin(asked[:, i], AUX.x.flatten(1)[:, i]).all() for i in range(asked.shape[1]))


def test_uniform_queries_fill_the_space():
    asked = torch.cat(queries(RetrainingUniform(**QUICK), 300))
    assert asked.mean().item() == pytest.approx(0.5, abs=0.01)
    assert asked.std().item() == pytest.approx(12**-0.5, abs=0.01)


def margins(x: Tensor) -> Tensor:
    """How far (n,) points are from the best classifier's boundary, along the diagonal."""
    return (x.flatten(1).mean(1) - 0.5).abs()


def test_jacobian_augmentation_doubles_its_points_towards_the_boundary_and_then_away_from_it():
    parts = queries(JacobianAugmentation(seeds=20, rounds=4, period=2, step=0.02, updates=200), 1000)
    sizes = [20, 20, 40, 80, 160]
    assert [len(part) for part in parts] == sizes
    before = parts[0]
    for turn, moved in enumerate(parts[1:]):
        nearer = margins(moved).mean() < margins(before).mean()
        assert bool(nearer) == (turn < 2)
        before = torch.cat([before, moved])


def test_half_of_a_line_search_ends_at_the_boundary():
    parts = queries(RetrainingLineSearch(**QUICK), 400)
    first, last = parts[1], parts[8]  # the first and the eighth halving
    assert margins(last).median() < margins(first).median() / 8
    assert sum(len(part) for part in parts) <= 400


def test_adaptive_queries_are_nearer_to_the_boundary_than_their_candidates():
    parts = queries(RetrainingAdaptive(rounds=4, updates=400), 200)
    assert margins(parts[-1]).median() < margins(parts[0]).median() / 2


class Linear(nn.Module):
    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return self.rows


def test_the_least_sure_comes_first():
    logits = torch.tensor([[5.0, 0.0], [0.1, 0.0], [0.0, 1.0]])
    assert unsure(Linear(logits), torch.zeros(3, 1)).tolist() == [1, 2, 0]
    assert ActiveUncertainty().chosen(Linear(logits), torch.zeros(3, 1), torch.zeros(0, 1), 3).tolist() == [
        1,
        2,
        0,
    ]


def test_centers_are_the_farthest_from_those_before():
    points = torch.tensor([[0.0], [1.0], [10.0], [6.0]])
    assert greedy_centers(points, torch.tensor([[0.5]]), 2).tolist() == [2, 3, 0, 1]
    assert greedy_centers(points, torch.zeros(0, 1), 3).tolist() == [0, 2, 3, 1]


def test_the_bandit_prefers_arms_that_are_rewarded_above_the_mean():
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    value = climbed(
        torch.zeros(3).double(), even, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]).double(), 1.0
    )
    assert value.tolist() == pytest.approx([0.5, -0.5, 0.0])


def test_sure_unusual_and_badly_copied_answers_are_rewarded():
    shares = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]])
    told = rewards(
        Answers(torch.zeros(3, 1), shares), Linear(torch.zeros(3, 2)), torch.tensor([0.9, 0.1]).double()
    )
    assert int(told.argmax()) == 2
    assert ((told >= 0) & (told <= 1)).all()


def test_a_copy_fitted_to_shares_answers_with_them():
    shares = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    network = imitate(nn.Linear(2, 2), Answers(torch.eye(2), shares), Recipe(400, 2, 5e-2), Streams(0))
    assert torch.allclose(torch.softmax(network(torch.eye(2)), 1), shares, atol=0.01)


@pytest.mark.parametrize("thief", [Retraining, OwnLabels, RetrainingMarginal, JacobianAugmentation])
def test_a_thief_that_needs_data_says_so(thief):
    threat = Threat.parse("extraction/black/labels:10")
    target = Target(TASK.best(), threat, space=TASK.space, classes=2, rng=Streams(0))
    with pytest.raises(FirstlineError, match="aux=yes"):
        thief().extract(target, None, threat, Streams(0))


def test_logits_are_compared_up_to_a_constant():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert apart(logits + 7, torch.softmax(logits.double(), 1)).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert apart(logits.flip(0), torch.softmax(logits.double(), 1)).tolist() == pytest.approx(
        [10 / 3] * 2, abs=1e-5
    )


@pytest.mark.parametrize(
    "space", [InputSpace((1, 30, 25), grid=1 / 255), InputSpace((7,), low=-2.0, high=3.0)]
)
def test_a_generator_makes_inputs_of_the_space(space):
    with torch.no_grad():
        made = space.round(
            Generator(space, 4, 16)(10 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
        )
    assert space.check(made) is None
    assert made.min() < 0.5 * space.low + 0.5
    assert made.max() > space.low + 0.7 * (space.high - space.low)


def test_the_generator_climbs_to_where_copy_and_system_differ():
    """The system is the best classifier, the copy says the same of everything: they differ most in the corners."""
    thief = replace(DataFree(pace=1e-2), hidden=16)
    threat = Threat.parse("extraction/black/scores:100k")
    target = Target(TASK.best(), threat, space=TASK.space, classes=2, rng=Streams(0))
    torch_rng = torch.Generator().manual_seed(0)
    generator = Generator(TASK.space, thief.latent, 16)
    optimiser = torch.optim.Adam(generator.parameters(), lr=thief.pace)
    copy = Flat()
    before = margins(thief._made(generator, target, 200, torch_rng)).mean()
    for _ in range(60):
        thief._climbed(generator, optimiser, copy, target, 64, torch_rng)
    assert margins(thief._made(generator, target, 200, torch_rng)).mean() > 2 * before


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 2)


def test_what_slopes_cost_is_part_of_the_budget_and_taught_to_the_copy():
    parts = queries(DataFree(rounds=4, climbs=2, **QUICK), 200, goal="scores")
    assert sum(len(part) for part in parts) == 200

"""Rules of aggregation against slow twins and closed forms, and federated training against plain training."""

from copy import deepcopy
from dataclasses import replace
from statistics import fmean
from statistics import median as middle

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import train
from firstline.defenses.aggregation import (
    RULES,
    check,
    krum,
    krum_scores,
    mean,
    median,
    multi_krum,
    trimmed_mean,
)
from firstline.defenses.federated_training import FederatedTraining, dealt, fill, flat
from firstline.tasks.networks import Standardise

CPU = torch.device("cpu")
TASK = Blobs(train=120, test=64)
ROWS = TASK.load(None).train
ROBUST = [name for name in RULES if name != "mean"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def honest(clients: int, parameters: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(clients, parameters, generator=seeded(seed), dtype=torch.float64)


def naive_ranking(updates: list[list[float]], f: int) -> list[int]:
    """Clients by the score of Krum, lowest first, from the definition."""

    def score(i: int) -> float:
        others = (u for j, u in enumerate(updates) if j != i)
        distances = sorted(sum((a - b) ** 2 for a, b in zip(updates[i], u, strict=True)) for u in others)
        return sum(distances[: len(updates) - f - 2])

    return sorted(range(len(updates)), key=score)


def naive(rule: str, updates: list[list[float]], f: int) -> list[float]:
    n = len(updates)
    columns = [sorted(column) for column in zip(*updates, strict=True)]
    if rule == "krum":
        return updates[naive_ranking(updates, f)[0]]
    if rule == "multi-krum":
        chosen = [updates[i] for i in naive_ranking(updates, f)[: n - f]]
        return [fmean(column) for column in zip(*chosen, strict=True)]
    one = {"mean": fmean, "median": middle, "trimmed-mean": lambda column: fmean(column[f : n - f])}[rule]
    return [one(column) for column in columns]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("clients", "byzantine"), [(3, 0), (4, 0), (7, 2), (10, 2), (10, 3), (11, 4)])
def test_a_rule_is_its_slow_twin(rule, clients, byzantine):
    for seed in range(5):
        updates = honest(clients, seed=seed)
        expected = torch.tensor(naive(rule, updates.tolist(), byzantine), dtype=torch.float64)
        assert_close(RULES[rule](updates, byzantine), expected)


@pytest.mark.parametrize(("values", "expected"), [([3, 1, 9], 3), ([3, 1, 9, 4], 3.5), ([7], 7)])
def test_the_median_of_even_many_is_between_the_middle_two(values, expected):
    assert median(torch.tensor(values).float()[:, None], 0).item() == expected


def test_trimming_nothing_is_the_mean_and_trimming_all_but_one_the_median():
    updates = honest(9)
    assert_close(trimmed_mean(updates, 0), updates.mean(0))
    assert torch.equal(trimmed_mean(updates, 4), median(updates, 0))


def test_krum_without_byzantine_clients_chooses_the_most_central():
    line = torch.tensor([[0.0], [1.0], [2.0], [10.0], [3.0]])
    # The three nearest of 1: 0, 2, 3, at squared distances 1 + 1 + 4; of 2: 1, 3, 0, at 1 + 1 + 4: the first wins.
    assert krum_scores(line, 0).tolist() == [1 + 4 + 9, 6, 6, 49 + 64 + 81, 1 + 4 + 9]
    assert krum(line, 0).item() == 1
    assert multi_krum(line, 1).item() == pytest.approx(1.5)


EVIL = [1e3, -1e30, float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=["single", "double"])
def test_byzantine_clients_do_not_get_out_of_the_honest_range(rule, evil, kind):
    good = honest(7).to(kind)
    found = RULES[rule](torch.cat([torch.full((3, 5), evil, dtype=kind), good]), 3)
    assert found.dtype == kind
    assert ((found >= good.amin(0)) & (found <= good.amax(0))).all()


@pytest.mark.parametrize("evil", EVIL)
def test_outliers_do_not_move_the_choice_of_krum(evil):
    good = honest(7)
    choices = {
        tuple(krum(torch.cat([good, torch.full((3, 5), other, dtype=good.dtype)]), 3).tolist())
        for other in (evil, 50.0)
    }
    assert len(choices) == 1
    assert next(iter(choices)) in {tuple(row) for row in good.tolist()}


def test_krum_withstands_as_many_colluders_as_it_says_and_no_more():
    good, plot = honest(9), torch.full((9, 5), 100.0, dtype=torch.float64)
    assert krum(torch.cat([good[:6], plot[:3]]), 3).abs().max() < 10
    assert krum(torch.cat([good[:4], plot[:5]]), 3)[0] == 100


def test_one_client_moves_the_mean_anywhere():
    good = honest(9)
    push = 10 * 777.0 - good.sum(0)
    assert_close(mean(torch.cat([good, push[None]]), 0), torch.full((5,), 777.0, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_moves_with_the_updates_and_leaves_them_alone(rule):
    updates, shift = honest(9), honest(1, seed=1)
    before = updates.clone()
    assert_close(RULES[rule](updates + shift, 3), RULES[rule](updates, 3) + shift[0])
    assert torch.equal(updates, before)


@pytest.mark.parametrize(
    ("rule", "clients", "byzantine", "message"),
    [
        ("median", 4, 2, "median with 2 byzantine clients needs at least 5 clients, got 4"),
        ("trimmed-mean", 4, 2, "trimmed-mean with 2 byzantine clients needs at least 5 clients, got 4"),
        ("krum", 6, 2, "krum with 2 byzantine clients needs at least 7 clients, got 6"),
        ("multi-krum", 2, 0, "multi-krum with 0 byzantine clients needs at least 3 clients, got 2"),
        ("median", 4, -1, "median needs at least 1 client and 0 byzantine ones, got 4 and -1"),
        ("mean", 0, 0, "mean needs at least 1 client and 0 byzantine ones, got 0 and 0"),
        ("crum", 9, 1, "no aggregation rule is called 'crum'; did you mean 'krum'"),
    ],
)
def test_what_a_rule_can_not_bear_is_told_before_training(rule, clients, byzantine, message):
    with pytest.raises(FirstlineError, match=message) as told:
        FederatedTraining(aggregation=rule, clients=clients, byzantine=byzantine).build(TASK)
    assert "\n" not in str(told.value)
    if rule in RULES and clients:
        with pytest.raises(FirstlineError, match=message):
            RULES[rule](honest(clients), byzantine)


@pytest.mark.parametrize("rule", ROBUST)
def test_the_fewest_clients_are_enough(rule):
    fewest = {"krum": 7, "multi-krum": 7}.get(rule, 5)
    check(rule, fewest, 2)
    assert torch.isfinite(RULES[rule](honest(fewest), 2)).all()


def fresh(seed: int = 0) -> nn.Module:
    return initialise(TASK.default.build, Streams(seed))


def fit(defense: FederatedTraining, data: Data = ROWS, seed: int = 0) -> nn.Module:
    return defense.train(fresh(), data, Context(TASK, Streams(seed), CPU))


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean"])
def test_one_client_trains_as_anyone_does(rule, rounds):
    settings = FederatedTraining(aggregation=rule, clients=1, byzantine=0, rounds=rounds, epochs=4)
    plain, recipe = fresh(), replace(TASK.default.recipe, epochs=4)
    for turn in range(rounds):
        plain = train(plain, ROWS, recipe, Streams(0).child(f"round {turn}", "client 0"))
    assert torch.equal(flat(fit(settings)), flat(plain))
    assert not torch.equal(flat(fresh()), flat(plain))


def test_the_server_takes_the_rule_over_what_clients_learn_apart():
    settings = FederatedTraining(clients=5, byzantine=2, rounds=1, epochs=2)
    recipe = replace(TASK.default.recipe, epochs=2)
    apart = []
    for client in range(5):
        rows = ROWS.rows(torch.arange(24 * client, 24 * (client + 1)))
        apart.append(flat(train(fresh(), rows, recipe, Streams(0).child("round 0", f"client {client}"))))
    expected = torch.tensor(naive("median", torch.stack(apart).tolist(), 2), dtype=torch.float64)
    assert_close(flat(fit(settings)), expected)


@pytest.mark.parametrize("rng", [None, Streams(0)], ids=["blocks", "scattered"])
def test_every_row_has_one_client_and_clients_hold_equally_many(rng):
    parts = dealt(103, 10, rng)
    assert sorted(torch.cat(parts).tolist()) == list(range(103))
    assert {len(part) for part in parts} == {10, 11}


def test_blocks_keep_the_order_of_rows_and_scattering_is_by_the_seed():
    assert torch.equal(torch.cat(dealt(50, 4, None)), torch.arange(50))
    one, again, other = (torch.cat(dealt(50, 4, Streams(seed))) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, torch.arange(50))


def test_what_is_learned_goes_back_where_it_came_from():
    network = nn.Sequential(Standardise((0.1307,), (0.3081,), 1), nn.Linear(3, 4), nn.BatchNorm1d(4))
    network(torch.rand(8, 3, generator=seeded(0)))
    other = deepcopy(network)
    fill(other, torch.zeros(len(flat(other))))
    assert not flat(other).any()
    fill(other, mean(flat(network).repeat(7, 1), 0))
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"epochs": 0}], ids=str)
def test_training_needs_rounds_and_epochs(settings):
    with pytest.raises(FirstlineError, match="rounds and epochs must be at least 1"):
        FederatedTraining(**settings).build(TASK)


def test_more_clients_than_rows_are_told():
    with pytest.raises(FirstlineError, match="10 clients share 9 rows; take fewer clients"):
        fit(FederatedTraining(), ROWS.rows(torch.arange(9)))

"""Ensembles: what the members answer together, and what makes them differ."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.attacks.evasion.pgd import PGD
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import training
from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses import diverse_ensemble
from firstline.defenses.diverse_ensemble import DiverseEnsemble, entropy, log_diversity
from firstline.defenses.ensemble import Ensemble, Members
from firstline.defenses.none import NoDefense
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Digits()
SPLITS = TASK.load(None)
TEST = SPLITS.test.rows(torch.arange(150))
BLOBS = Blobs(train=96)


def fit(defense: Defense, task: Task = TASK, train: Data = SPLITS.train) -> System:
    return Stack((defense,)).fit(task, train, Streams(0), CPU).system


def logits(system: System, x: Tensor) -> Tensor:
    with torch.no_grad():
        return system.respond(x, torch.Generator()).logits


@pytest.fixture(scope="module")
def deep() -> System:
    return fit(Ensemble())


def test_the_members_answer_with_their_mean_probability(deep):
    each = [torch.softmax(member(TEST.x), 1) for member in deep.module.networks]
    assert len(each) == 3
    torch.testing.assert_close(logits(deep, TEST.x).exp(), sum(each) / 3)


def test_the_first_member_is_the_undefended_network(deep):
    assert torch.equal(deep.module.networks[0](TEST.x), logits(fit(NoDefense()), TEST.x))


def test_every_member_starts_elsewhere_and_meets_another_order(monkeypatch):
    starts: list[Tensor] = []
    orders: list[Tensor] = []
    loop = training.train

    def spy(network: nn.Module, data: Data, recipe: training.Recipe, rng: Streams) -> nn.Module:
        starts.append(network[2].weight.detach().clone())
        orders.append(torch.randperm(len(data), generator=rng.torch("batches")))
        return loop(network, data, replace(recipe, epochs=1), rng)

    monkeypatch.setattr("firstline.defenses.ensemble.train", spy)
    fit(Ensemble(members=4), BLOBS, BLOBS.load(None).train)
    for found in (starts, orders):
        assert len({tuple(part.flatten().tolist()) for part in found}) == 4


@pytest.mark.parametrize("defense", [Ensemble(members=0), DiverseEnsemble(members=0)], ids=str)
def test_an_ensemble_of_nobody_is_no_setting(defense):
    with pytest.raises(FirstlineError, match="members must be at least 1, got 0"):
        defense.build(TASK)


def test_examples_transfer_between_the_members(deep):
    eps = TASK.eps["linf"]
    threat = Threat.parse(f"evasion/white/linf:{eps}")
    door = Target(deep, threat, space=TASK.space, classes=10, rng=Streams(0), examples=len(TEST))
    region = Region(TEST.x.clone(), TASK.space, "linf", eps)
    found = PGD(loss="margin").perturb(door, TEST.x.clone(), TEST.y.clone(), region, Streams(1))
    assert float((logits(deep, TEST.x).argmax(1) == TEST.y).float().mean()) > 0.9
    assert float((logits(deep, found).argmax(1) == TEST.y).float().mean()) < 0.35


def naive_diversity(shares: Tensor, y: Tensor) -> list[float]:
    """The squared volume of the members' vectors, one example at a time, by their singular values."""
    found = []
    for row, label in enumerate(y.tolist()):
        vectors = np.delete(shares[:, row].double().numpy(), label, axis=1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found.append(float(np.prod(np.linalg.svd(vectors, compute_uv=False)[: len(vectors)]) ** 2))
    return found


def test_the_diversity_is_the_squared_volume_of_the_other_predictions():
    generator = torch.Generator().manual_seed(0)
    shares = torch.softmax(2 * torch.randn(3, 40, 7, generator=generator), 2)
    y = torch.randint(7, (40,), generator=generator)
    torch.testing.assert_close(
        log_diversity(shares, y).exp(), torch.tensor(naive_diversity(shares, y)), atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.5, 0.5, 0.0, 0.0], [0.2, 0.0, 0.8, 0.0], 1.0),  # orthogonal
        ([0.5, 0.5, 0.0, 0.0], [0.6, 0.2, 0.2, 0.0], 0.5),  # at 45 degrees
        ([0.5, 0.5, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0], 0.0),  # alike
    ],
)
def test_two_members_have_the_squared_sine_of_their_angle(first, second, expected):
    shares = torch.tensor([[first], [second]])
    found = log_diversity(shares, torch.tensor([0])).exp()
    torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-5, rtol=0)


def test_members_who_agree_can_still_be_driven_apart():
    logs = torch.zeros(3, 2, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_diversity(torch.softmax(logs, 2), torch.tensor([0, 1])).sum(), logs)
    assert torch.isfinite(gradient).all()


def test_the_entropy_of_an_even_answer_is_the_logarithm_of_the_classes():
    even = torch.full((1, 8), -math.log(8))
    torch.testing.assert_close(entropy(even), torch.tensor([math.log(8)]))


def losses(monkeypatch, defense: DiverseEnsemble, task: Task) -> list[float]:
    """The loss that a defense trains with, and its three parts, at fixed members, on the first rows of a task."""
    found: list[float] = []
    some = task.load(None).train.rows(torch.arange(12))
    network = Members([nn.Sequential(nn.Flatten(), nn.Linear(64, task.classes)) for _ in range(3)])
    for number, member in enumerate(network.networks):
        with torch.no_grad():
            member[1].weight.copy_(torch.randn(task.classes, 64, generator=Streams(number).torch("w")))
            member[1].bias.zero_()

    @torch.no_grad()
    def spy(module, data, recipe, rng, *, loss):
        shares = torch.stack([torch.softmax(member(data.x), 1) for member in module.networks])
        mean = shares.mean(0)
        found.append(float(loss(module, data.x, data.y)))
        found.append(float(sum(cross_entropy(member(data.x), data.y) for member in module.networks)))
        found.append(float(-(mean * mean.log()).sum(1).mean()))
        found.append(float(log_diversity(shares, data.y).mean()))
        return module

    monkeypatch.setattr(diverse_ensemble, "train", spy)
    defense.train(network, some, Context(task, Streams(0), CPU))
    return found


def test_the_loss_is_that_of_the_paper(monkeypatch):
    total, errors, spread, diversity = losses(monkeypatch, DiverseEnsemble(alpha=3.0, beta=0.7), TASK)
    assert total == pytest.approx(errors - 3 * spread - 0.7 * diversity, rel=1e-4)


def test_with_as_many_members_as_classes_only_the_entropy_counts(monkeypatch):
    total, errors, spread, _ = losses(monkeypatch, DiverseEnsemble(), BLOBS)
    assert total == pytest.approx(errors - 2 * spread, rel=1e-4)


def test_members_trained_to_disagree_do(deep):
    diverse = fit(DiverseEnsemble())
    means = []
    for system in (deep, diverse):
        shares = system.module.each(TEST.x).exp()
        means.append(float(log_diversity(shares, TEST.y).mean()))
    assert means[1] > means[0] + 1

"""Randomised smoothing: its bound, its proof and its refusals, against closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import binomtest
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import training
from firstline.benchmark.core.contracts import Context
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import INVALID, REFUSED, Bare, Response, System
from firstline.defenses import randomised_smoothing
from firstline.defenses.randomised_smoothing import RandomisedSmoothing, lower_bound

TASK = Blobs()
TEST = TASK.load(None).test


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smoothed(inner: System, **settings: float) -> System:
    return RandomisedSmoothing(**settings).deploy(inner, TASK)


@pytest.mark.parametrize(("hits", "draws"), [(0, 20), (1, 20), (13, 20), (20, 20), (950, 1000)])
def test_the_bound_is_that_of_clopper_and_pearson(hits, draws):
    expected = binomtest(hits, draws, alternative="greater").proportion_ci(0.99, method="exact").low
    assert lower_bound(np.array([hits]), draws, 0.01)[0] == pytest.approx(expected, abs=1e-9)


def test_the_bound_of_draws_that_all_hit_is_a_root_of_alpha():
    assert lower_bound(np.array([100]), 100, 0.001)[0] == pytest.approx(0.001 ** (1 / 100))


@pytest.mark.parametrize("truth", [0.3, 0.8, 0.99])
def test_the_bound_is_right_as_often_as_it_says(truth):
    hits = np.random.default_rng(0).binomial(500, truth, size=20_000)
    missed = float((lower_bound(hits, 500, 0.05) > truth).mean())
    assert missed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20_000)
    assert missed > 0.005  # not so cautious that it says nothing


def test_a_linear_classifier_is_proved_nearly_up_to_its_hyperplane():
    system = smoothed(TASK.best(), sigma=0.3, n=20_000)
    some = TEST.rows(torch.arange(24))
    proof = system.certify(some.x, "l2", chance())
    true = (some.x.flatten(1).mean(1) - 0.5).abs().double() * 8  # the distance to the hyperplane, in l2
    assert (proof.radii <= true).all()
    near = (true < 0.6) & (true > 0.05)
    assert near.sum() > 10
    assert (true - proof.radii)[near].max() < 0.05
    assert torch.equal(proof.labels[near], TASK.best().respond(some.x, chance()).labels[near])


def test_no_proof_is_longer_than_its_draws_allow():
    far = torch.ones(4, 1, 8, 8)
    proof = smoothed(TASK.best(), sigma=0.25).certify(far, "l2", chance())
    assert proof.radii.tolist() == pytest.approx([2.464 * 0.25] * 4, abs=1e-3)  # said in the docstring


@pytest.mark.parametrize("norm", ["linf", "l1", "l0"])
def test_other_norms_are_not_proved(norm):
    assert smoothed(TASK.best()).certify(TEST.x[:2], norm, chance()) is None


class Coin(System):
    """Answers 1 of two classes with probability truth, and refuses or loses a share of the answers."""

    def __init__(self, truth: float, *, refused: float = 0.0, lost: float = 0.0) -> None:
        super().__init__()
        self.truth, self.refused, self.lost = truth, refused, lost

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        draw, other = torch.rand(2, len(x), generator=rng)
        logits = torch.stack([torch.zeros(len(x)), torch.where(draw < self.truth, 1.0, -1.0)], 1)
        logits[(other > self.refused) & (other < self.refused + self.lost)] = torch.nan
        return Response(logits, other - self.refused)


def test_the_answer_is_that_of_most_draws():
    found = smoothed(Coin(0.9)).respond(torch.zeros(200, 1, 8, 8), chance())
    assert found.labels.tolist() == [1] * 200
    shares = found.logits.exp()[:, 1]
    assert float(shares.mean()) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("truth", [0.5, 0.55, 0.7, 0.9])
def test_an_input_is_refused_exactly_when_the_binomial_test_says_so(truth):
    settings = {"votes": 60, "alpha": 0.01}
    x = torch.zeros(100, 1, 8, 8)
    found = smoothed(Coin(truth), **settings).respond(x, chance())
    rng, ones = chance(), torch.zeros(100)
    for _ in range(60):
        torch.randn(x.shape, generator=rng)
        ones += Coin(truth).respond(x, rng).labels
    expected = [binomtest(int(n), 60, 0.5).pvalue <= 0.01 for n in ones]
    assert found.accepted.tolist() == expected
    assert (found.labels == REFUSED).tolist() == [not kept for kept in expected]


def test_draws_that_are_refused_or_no_number_vote_for_nobody():
    system = smoothed(Coin(1.0, refused=0.3, lost=0.3), n=2000)
    found = system.respond(torch.zeros(50, 1, 8, 8), chance())
    assert not (found.labels == INVALID).any()
    assert torch.isfinite(found.logits).all()
    assert float(found.logits.exp()[:, 1].mean()) == pytest.approx(0.4, abs=0.03)
    proof = system.certify(torch.zeros(5, 1, 8, 8), "l2", chance())
    assert proof.labels.tolist() == [REFUSED] * 5  # 0.4 is no majority
    assert not proof.radii.any()


class Sure(System):
    """Answers 0 with logits so far apart that the other class has a probability of 0 in single precision."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(torch.tensor([1000.0, 0.0]) + 0 * x.flatten(1)[:, :2])


def test_certain_answers_stay_finite():
    found = smoothed(Sure()).respond(TEST.x[:3], chance())
    assert torch.isfinite(found.logits).all()
    assert found.labels.tolist() == [0] * 3


def test_the_stand_in_has_the_probability_of_the_vote_on_a_linear_classifier():
    steep = Bare(torch.nn.Sequential(*TASK.best().module, _Times(1e3)))
    system, x = smoothed(steep, sigma=0.2), TEST.x[:64]
    draws = [system.surrogate(x, chance(seed)).logits.exp()[:, 1] for seed in range(100)]
    expected = ndtr((x.flatten(1).mean(1) - 0.5).double().numpy() * 8 / 0.2)
    np.testing.assert_allclose(torch.stack(draws).mean(0).numpy(), expected, atol=0.06)


class _Times(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_with_draws_enough_the_stand_in_accepts_where_the_vote_mostly_does(monkeypatch):
    monkeypatch.setattr(randomised_smoothing, "SOFT", 400)
    system = smoothed(TASK.best(), sigma=1.0)
    x = torch.linspace(0.4, 0.6, 200).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    hard = torch.stack([system.respond(x, chance(seed)).accepted for seed in range(9)]).float().mean(0) > 0.5
    soft = system.surrogate(x, chance()).acceptance >= 0
    assert float((soft == hard).float().mean()) > 0.88
    assert 0.1 < float(soft.float().mean()) < 0.9


def test_the_network_is_trained_on_noise_of_its_own_sigma(monkeypatch):
    spread: list[float] = []
    loop = training.train

    def spy(module, data, recipe, rng, *, perturb):
        def watched(module: torch.nn.Module, x: Tensor, y: Tensor, noise: torch.Generator) -> Tensor:
            found = perturb(module, x, y, noise)
            spread.append(float((found - x).std()))
            return found

        return loop(module, data, replace(recipe, epochs=1), rng, perturb=watched)

    monkeypatch.setattr(randomised_smoothing, "train", spy)
    context = Context(TASK, Streams(0), torch.device("cpu"))
    RandomisedSmoothing(sigma=0.4).train(TASK.default.build(), TASK.load(None).train, context)
    assert spread == pytest.approx([0.4] * 8, rel=0.1)


def test_it_is_as_good_as_the_best_classifier_where_noise_cancels():
    defense = RandomisedSmoothing(sigma=0.1, votes=30, alpha=0.05)
    system = Stack((defense,)).fit(TASK, TASK.load(None).train, Streams(0), torch.device("cpu")).system
    right = (system.respond(TEST.x, chance()).labels == TEST.y).float().mean()
    assert float(right) > 0.95


@pytest.mark.parametrize("settings", [{"sigma": 0.0}, {"votes": 0}, {"n": 0}, {"n0": 0}, {"alpha": 1.0}])
def test_settings_that_make_no_vote_are_refused(settings):
    with pytest.raises(FirstlineError, match="sigma must be positive"):
        smoothed(TASK.best(), **settings)

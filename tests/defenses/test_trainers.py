"""The losses of trainers, against their papers' formulas written out row by row."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import adversarial, training
from firstline.benchmark.core.contracts import Context, Defense, initialise
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import divergences
from firstline.benchmark.core.norms import distance
from firstline.benchmark.core.rng import Streams
from firstline.defenses import gradient_regularisation, spectral_regularisation
from firstline.defenses.adversarial_training import AdversarialTraining
from firstline.defenses.fast_adversarial_training import FastAdversarialTraining
from firstline.defenses.gradient_regularisation import GradientRegularisation
from firstline.defenses.label_smoothing import LabelSmoothing
from firstline.defenses.mart import Mart, boosted_cross_entropy
from firstline.defenses.none import NoDefense
from firstline.defenses.spectral_regularisation import SpectralRegularisation, spectral_norm
from firstline.defenses.trades import Trades
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Blobs(train=96, test=64)
ROWS = TASK.load(None).train


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(classes: int = 4, features: int = 6) -> nn.Module:
    return initialise(
        lambda: nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, classes)), Streams(0)
    )


def softmax(logits: Tensor) -> list[list[float]]:
    rows = [[math.exp(z) for z in row] for row in logits.tolist()]
    return [[z / sum(row) for z in row] for row in rows]


def kl(truth: list[float], other: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(truth, other, strict=True))


def batch(n: int = 5, features: int = 6, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.rand(n, features, generator=seeded(1))
    return x, x + 0.3 * torch.randn(x.shape, generator=seeded(2)), torch.arange(n) % classes


def fit(defense: Defense, seed: int = 0) -> nn.Module:
    rng = Streams(seed)
    return defense.train(initialise(TASK.default.build, rng), ROWS, Context(TASK, rng, CPU))


def weights(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def captured(
    monkeypatch: pytest.MonkeyPatch, where: Any, defense: Defense, task: Any = TASK
) -> dict[str, Any]:
    """What defense hands to the training loop, which does not run."""
    seen: dict[str, Any] = {}

    def spy(module: nn.Module, data: object, recipe: object, rng: object, **more: Any) -> nn.Module:
        seen.update(more, module=module)
        return module

    monkeypatch.setattr(where, "train", spy)
    defense.train(task.default.build(), ROWS, Context(task, Streams(0), CPU))
    return seen


def test_the_trades_loss_is_the_papers():
    module = network()
    x, moved, y = batch()
    clean, attacked = softmax(module(x)), softmax(module(moved))
    wanted = sum(
        -math.log(p[label]) + 3.0 * kl(p, q) for p, q, label in zip(clean, attacked, y.tolist(), strict=True)
    )
    assert Trades(beta=3.0).loss(module, x, moved, y).item() == pytest.approx(wanted / len(y), rel=1e-5)


def test_trades_climbs_the_divergence_from_the_clean_answers(monkeypatch):
    perturb = captured(monkeypatch, adversarial, Trades(eps=0.05))["perturb"]
    module = initialise(TASK.default.build, Streams(0))
    clean, moved = perturb(module, ROWS.x, ROWS.y, seeded(0))
    start = Region(ROWS.x, TASK.space, "linf", 0.05).random(seeded(0))
    far, near = (divergences(module(points), module(clean)) for points in (moved, start))
    assert float((far > near).float().mean()) > 0.95
    # The labels have no say in it, unlike in every other trainer.
    assert torch.equal(perturb(module, ROWS.x, 1 - ROWS.y, seeded(0))[1], moved)


def test_trades_leaves_the_clean_point_on_a_coarse_grid(monkeypatch):
    task = Digits()
    perturb = captured(monkeypatch, adversarial, Trades(), task)["perturb"]
    x = task.space.round(torch.rand(16, 1, 8, 8, generator=seeded(0)))
    clean, moved = perturb(task.default.build(), x, torch.zeros(16).long(), seeded(0))
    assert float(distance(clean, moved, "linf").min()) > 0.06  # a grey level is 1/16
    torch.testing.assert_close(moved, task.space.round(moved))


def test_trades_with_beta_0_is_plain_training():
    torch.testing.assert_close(weights(fit(Trades(beta=0.0, steps=1))), weights(fit(NoDefense())))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_mart_loss_is_the_papers(classes):
    module = network(classes)
    x, moved, y = batch(classes=classes)
    total = 0.0
    for p, q, label in zip(softmax(module(x)), softmax(module(moved)), y.tolist(), strict=True):
        other = max(q[k] for k in range(classes) if k != label)
        total += -math.log(q[label]) - math.log(1 - other) + 5.0 * kl(p, q) * (1 - p[label])
    assert Mart().loss(module, x, moved, y).item() == pytest.approx(total / len(y), rel=1e-5)


def test_the_boosted_cross_entropy_is_exact_where_probabilities_round_to_1():
    logits = torch.tensor([[0.0, 200.0, 0.0], [200.0, 0.0, 0.0]], requires_grad=True)
    losses = boosted_cross_entropy(logits, torch.tensor([0, 0]))
    # Wrong by 200: 200 for the own class, 200 - log 2 for the other one, which two classes are left of.
    torch.testing.assert_close(losses, torch.tensor([400 - math.log(2), 0.0]))
    losses.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_fast_training_takes_one_long_step_from_a_random_start(monkeypatch):
    perturb = captured(monkeypatch, adversarial, FastAdversarialTraining(eps=0.1))["perturb"]
    module = initialise(TASK.default.build, Streams(0))
    _, moved = perturb(module, ROWS.x, ROWS.y, seeded(7))
    delta = 0.1 * (2 * torch.rand(ROWS.x.shape, generator=seeded(7)) - 1)
    assert float((ROWS.x + delta).min()) < 0  # the start is not cut to the box, only the end
    point = (ROWS.x + delta).requires_grad_()
    cross_entropy(module(point), ROWS.y).backward()
    delta = (delta + 1.25 * 0.1 * point.grad.sign()).clamp(-0.1, 0.1)
    torch.testing.assert_close(moved, (ROWS.x + delta).clamp(0, 1))


def test_the_same_ascent_teaches_each_trainer_something_else():
    same = {"steps": 2, "stride": 0.5}
    kinds = (AdversarialTraining, FastAdversarialTraining, Trades, Mart)
    first, *others = (weights(fit(kind(**same))) for kind in kinds)
    assert not any(torch.equal(first, other) for other in others)


def test_smoothed_labels_are_the_papers():
    loss = LabelSmoothing(smoothing=0.2).objective
    module = network()
    x, _, y = batch()
    total = 0.0
    for p, label in zip(softmax(module(x)), y.tolist(), strict=True):
        total -= sum((0.05 + 0.8 * (k == label)) * math.log(p[k]) for k in range(4))
    assert loss(module, x, y).item() == pytest.approx(total / len(y), rel=1e-5)


def test_the_gradient_penalty_has_its_closed_form_on_a_linear_network(monkeypatch):
    loss = captured(monkeypatch, gradient_regularisation, GradientRegularisation(weight=2.0))["loss"]
    linear = initialise(lambda: nn.Linear(6, 4), Streams(0))
    x, _, y = batch()
    shares = torch.softmax(linear(x), 1) - nn.functional.one_hot(y, 4)
    wanted = cross_entropy(linear(x), y) + 2.0 * (shares @ linear.weight).square().sum(1).mean()
    found = loss(linear, x, y)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        *(torch.autograd.grad(v, linear.parameters()) for v in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "defense",
    [LabelSmoothing(smoothing=0.0), GradientRegularisation(weight=0.0), SpectralRegularisation(weight=0.0)],
    ids=str,
)
def test_a_penalty_of_nothing_is_plain_training(defense):
    torch.testing.assert_close(weights(fit(defense)), weights(fit(NoDefense())))


def slope_length(module: nn.Module) -> float:
    x = ROWS.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(module(x), ROWS.y, reduction="sum"), x)
    return float(gradient.flatten(1).norm(dim=1).mean())


def norms(module: nn.Module) -> list[float]:
    return [float(torch.linalg.matrix_norm(p.detach(), 2)) for p in module.parameters() if p.ndim > 1]


def test_penalties_lower_what_they_penalise():
    plain = fit(NoDefense())
    assert slope_length(fit(GradientRegularisation(weight=10.0))) < 0.5 * slope_length(plain)
    tamed = norms(fit(SpectralRegularisation(weight=0.1)))
    assert math.prod(tamed) < 0.5 * math.prod(norms(plain))


@pytest.mark.parametrize("shape", [(5, 7), (8, 3, 4, 4)])
def test_power_iteration_finds_the_largest_singular_value(shape):
    weight = torch.randn(shape, generator=seeded(0), requires_grad=True)
    matrix = weight.detach().flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    start = torch.randn(matrix.shape[1], generator=seeded(1))
    found: list[float] = []
    for _ in range(200):
        norm, start = spectral_norm(weight, start)
        found.append(norm.item())
    assert max(found) <= values[0].item() * (1 + 1e-5)
    assert found == pytest.approx(sorted(found), rel=1e-5)
    assert found[-1] == pytest.approx(values[0].item(), rel=1e-4)
    norm.backward()  # the largest singular value rises fastest along its own pair of vectors
    torch.testing.assert_close(weight.grad.flatten(1), torch.outer(left[:, 0], right[0]), atol=1e-2, rtol=0)


def test_the_spectral_penalty_is_half_the_weighted_sum_of_squares(monkeypatch):
    seen = captured(monkeypatch, spectral_regularisation, SpectralRegularisation(weight=0.5))
    for _ in range(100):  # the directions are followed from call to call
        found = seen["loss"](seen["module"], ROWS.x, ROWS.y)
    plain = cross_entropy(seen["module"](ROWS.x), ROWS.y)
    wanted = 0.5 * sum(norm**2 for norm in norms(seen["module"])) / 2
    assert (found - plain).item() == pytest.approx(wanted, rel=1e-3)


def test_the_training_loop_of_all_trainers_is_one():
    assert adversarial.train is spectral_regularisation.train is training.train

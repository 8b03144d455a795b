"""What adversarial trainers share, against slow loops written out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import adversarial, training
from firstline.benchmark.core.adversarial import AdversarialTrainer, held_out, still
from firstline.benchmark.core.contracts import Architecture, Context, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import distance
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, batch=32, rate=1e-2)


def _normed() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2)
    )


@dataclass(frozen=True)
class Short(Blobs):
    """The oracle's data, two epochs, and a network with all that an ascent could disturb."""

    train: int = 80

    @property
    def architectures(self) -> dict[str, Architecture]:
        return {"normed": Architecture(_normed, RECIPE)}


TASK = Short()
ROWS = TASK.load(None).train


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the trainers hand to the training loop, which still runs."""
    seen: list[dict[str, Any]] = []
    loop = training.train

    def spy(module: nn.Module, data: Data, recipe: Recipe, rng: Streams, **more: Any) -> nn.Module:
        seen.append({"data": data, "batches": [], **more})

        def perturb(module: nn.Module, x: Tensor, y: Tensor, noise: torch.Generator) -> Tensor:
            pair = more["perturb"](module, x, y, noise)
            seen[-1]["batches"].append(pair)
            return pair

        return loop(module, data, recipe, rng, **{**more, "perturb": perturb})

    monkeypatch.setattr(adversarial, "train", spy)
    return seen


def fit(seed: int = 0, task: Blobs = TASK, **settings: Any) -> nn.Module:
    rng = Streams(seed)
    module = initialise(task.default.build, rng)
    return AdversarialTrainer(**settings).train(module, ROWS, Context(task, rng, CPU))


def pgd(
    module: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float, steps: int, stride: float
) -> Tensor:
    """The loop of a notebook."""
    moved = start
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        cross_entropy(module(moved), y, reduction="sum").backward()
        moved = moved.detach() + stride * eps * moved.grad.sign()
        moved = moved.clamp(x - eps, x + eps).clamp(0, 1)
    return moved


def uniform(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    return (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)


def test_a_module_that_stood_still_is_as_it_was():
    module = _normed()
    module[1].weight.requires_grad_(False)
    asked = [p.requires_grad for p in module.parameters()]

    def fail() -> None:
        with still(module):
            assert not any(layer.training for layer in module.modules())
            assert not any(p.requires_grad for p in module.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(layer.training for layer in module.modules())
    assert [p.requires_grad for p in module.parameters()] == asked


def test_the_ascent_moves_no_running_statistics_and_learns_nothing(calls):
    before = torch.get_rng_state()
    module = fit(steps=3)
    assert int(module[2].num_batches_tracked) == len(calls[0]["batches"]) == 2 * 3
    assert torch.equal(torch.get_rng_state(), before)


def test_training_is_the_loop_written_out():
    """One epoch in three batches on the task's own network, PGD as one writes it in a notebook."""

    @dataclass(frozen=True)
    class Once(Blobs):
        @property
        def default(self) -> Architecture:
            return replace(super().default, recipe=replace(RECIPE, epochs=1))

    fitted = fit(task=Once(), eps=0.05, steps=4, stride=0.3)
    rng = Streams(0)
    slow = initialise(Once().default.build, rng)
    optimiser = torch.optim.Adam(slow.parameters())
    noise = rng.torch("perturb")
    order = torch.randperm(80, generator=rng.torch("batches")).split(32)
    for rows, rate in zip(order, (1e-2, 1e-2, 0.5e-2), strict=True):
        x, y = ROWS.x[rows], ROWS.y[rows]
        moved = pgd(slow, x, y, uniform(x, 0.05, noise), 0.05, 4, 0.3)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        cross_entropy(slow(moved), y).backward()
        optimiser.step()
    for found, wanted in zip(fitted.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_radius_rises_batch_by_batch_and_then_stays(calls):
    fit(eps=0.06, ramp=2 / 3)  # of 6 batches
    far = [float(distance(clean, moved, "linf").max()) for clean, moved in calls[0]["batches"]]
    assert far == pytest.approx([0.015, 0.03, 0.045, 0.06, 0.06, 0.06], rel=1e-3)


def test_without_a_ramp_the_radius_is_whole_from_the_start(calls):
    fit(eps=0.06)
    far = [float(distance(clean, moved, "linf").max()) for clean, moved in calls[0]["batches"]]
    assert far == pytest.approx([0.06] * 6, rel=1e-3)


def test_held_out_rows_are_a_share_and_never_trained_on(calls):
    fit(holdout=0.25)
    rest = calls[0]["data"]
    assert len(rest) == 60
    trained = torch.cat([clean for clean, _ in calls[0]["batches"]])
    assert len(trained) == 2 * 60
    met = torch.tensor([bool((trained == x).flatten(1).all(1).any()) for x in ROWS.x])
    assert int(met.sum()) == 60
    assert sorted(ROWS.ids[met].tolist()) == sorted(rest.ids.tolist())
    other, held = held_out(ROWS, 0.25, Streams(0))
    assert sorted([*other.ids.tolist(), *held.ids.tolist()]) == list(range(80))
    assert torch.equal(other.ids, rest.ids)
    assert not torch.equal(held_out(ROWS, 0.25, Streams(1))[1].ids, held.ids)


def test_an_epoch_is_judged_by_pgd_on_the_held_out_rows(calls):
    module = fit(holdout=0.5, eps=0.1)
    held = held_out(ROWS, 0.5, Streams(0))[1]
    start = uniform(held.x, 0.1, Streams(0).torch("trial"))
    moved = pgd(module, held.x, held.y, start, 0.1, 10, 0.25)
    wanted = float((module(moved).argmax(1) == held.y).float().mean())
    assert 0.1 < wanted < 0.95  # a share that a wrong radius or split would change
    assert calls[0]["judge"](module) == pytest.approx(wanted)
    assert calls[0]["judge"](module) == calls[0]["judge"](module)


def test_without_a_holdout_every_row_is_trained_on_and_nobody_judges(calls):
    fit()
    assert len(calls[0]["data"]) == 80
    assert calls[0]["judge"] is None


@pytest.mark.parametrize("share", [0.001, 0.999, 1.5, -0.5])
def test_a_holdout_that_leaves_nothing_is_refused(share):
    with pytest.raises(FirstlineError, match="of 80 training rows"):
        fit(holdout=share)


@pytest.mark.parametrize(
    "settings", [{}, {"awp": 0.01}, {"holdout": 0.2}, {"ramp": 0.5}, {"norm": "l2"}], ids=str
)
def test_the_same_seed_gives_the_same_weights_and_every_setting_counts(settings):
    def weights(seed: int, **more: Any) -> Tensor:
        return nn.utils.parameters_to_vector(fit(seed, **more).parameters()).detach()

    assert torch.equal(weights(3, **settings), weights(3, **settings))
    assert not torch.equal(weights(3, **settings), weights(4, **settings))
    assert not settings or not torch.equal(weights(3, **settings), weights(3))


def test_the_weights_are_perturbed_on_top_of_whatever_a_trainer_learns(calls):
    seen: list[bool] = []

    class Watched(AdversarialTrainer):
        def loss(self, module: nn.Module, x: Tensor, moved: Tensor, y: Tensor) -> Tensor:
            seen.append(torch.equal(x, moved))
            return super().loss(module, x, moved, y)

    rng = Streams(0)
    trainer: Callable[..., AdversarialTrainer] = Watched
    trainer(awp=0.01).train(initialise(_normed, rng), ROWS, Context(TASK, rng, CPU))
    assert seen == [False] * 2 * 6  # at the weights, and at the worst ones near them

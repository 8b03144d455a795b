"""The one training loop."""

import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import Recipe, plain_loss, train

RECIPE = Recipe(epochs=3, batch=16, rate=1e-2)


def data(n: int = 40) -> Data:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return Data.of(x, (x[:, 0] > 0).long())


def module() -> nn.Module:
    return initialise(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)), Streams(0)
    )


def weights(seed: int, **more: object) -> Tensor:
    fitted = train(module(), data(), RECIPE, Streams(seed), **more)
    return torch.cat([p.detach().flatten() for p in fitted.parameters()])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_same_seed_gives_the_same_untrained_network():
    first, second = module(), module()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_training_leaves_the_global_generator_and_the_data_alone():
    before, mine = torch.get_rng_state(), data()
    train(module(), mine, RECIPE, Streams(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(mine.x, data().x)


def test_what_happens_outside_does_not_reach_the_weights():
    first = weights(1)
    torch.rand(7)
    assert torch.equal(weights(1), first)


def test_training_learns_and_ends_in_evaluation_mode():
    fitted = train(module(), data(200), Recipe(epochs=10, batch=32, rate=3e-2), Streams(0))
    assert not fitted.training
    assert float((fitted(data(200).x).argmax(1) == data(200).y).float().mean()) > 0.9


def test_every_epoch_meets_every_row_once_in_an_order_of_its_own():
    met: list[list[int]] = []

    def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        met.append([int((data().x == row).all(1).nonzero()) for row in x])
        return plain_loss(network, x, y)

    train(module(), data(), RECIPE, Streams(0), loss=loss)
    assert [len(batch) for batch in met] == [16, 16, 8] * 3
    epochs = [[row for batch in met[i : i + 3] for row in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    # The order is a stream of its own: what else is drawn does not change it, so defenses compare.
    first = [list(batch) for batch in met]
    met.clear()
    train(module(), data(), RECIPE, Streams(0), perturb=lambda m, x, y, rng: x + 0 * torch.rand(1), loss=loss)
    assert met == first


def test_a_perturbation_replaces_the_inputs_that_the_loss_sees():
    seen = []

    def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(float(x.abs().max()))
        return plain_loss(network, x, y)

    train(module(), data(), RECIPE, Streams(0), perturb=lambda network, x, y, noise: x * 0, loss=loss)
    assert seen == [0.0] * 9


def test_the_learning_rate_rises_and_falls_to_nothing(monkeypatch):
    rates: list[float] = []
    step = torch.optim.Adam.step

    def spy(optimiser, *args, **kwargs):
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    train(module(), data(), Recipe(epochs=10, batch=16, rate=1.0), Streams(0))
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])  # a tenth of the 30 steps
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 27)


def test_a_loss_that_is_no_number_ends_the_training_with_its_epoch():
    calls = iter(range(100))

    def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return plain_loss(network, x, y) * (float("inf") if next(calls) == 4 else 1)

    with pytest.raises(FirstlineError, match="training diverged in epoch 2: the loss is inf"):
        train(module(), data(), RECIPE, Streams(0), loss=loss)

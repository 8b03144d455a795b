"""The one training loop."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import Recipe, plain_loss, train, worst_weights

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


def normed(seed: int = 0) -> nn.Module:
    """A network with batch norm, whose running statistics a stray forward pass would move."""
    return initialise(
        lambda: nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
        Streams(seed),
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_worst_weights_are_up_the_gradient_layer_by_layer_and_then_gone():
    network, some = normed(), data()
    plain_loss(network, some.x, some.y).backward()
    before, value = state(network), plain_loss(deepcopy(network), some.x, some.y).item()
    slopes = {name: p.grad.clone() for name, p in network.named_parameters()}
    with worst_weights(network, 0.05):
        for name, weight in network.named_parameters():
            moved = weight.detach() - before[name]
            if weight.ndim == 1:
                assert not moved.any(), name
                continue
            assert float(moved.norm() / before[name].norm()) == pytest.approx(0.05, rel=1e-4), name
            along = float((moved * slopes[name]).sum() / (moved.norm() * slopes[name].norm()))
            assert along == pytest.approx(1.0, abs=1e-4), name
        assert plain_loss(network, some.x, some.y).item() > value  # and it moves the running statistics
    assert same(state(network), before)


def test_weights_come_back_after_an_error_too():
    network, some = normed(), data()
    plain_loss(network, some.x, some.y).backward()
    before = state(network)

    def fail() -> None:
        with worst_weights(network, 0.05):
            network(some.x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same(state(network), before)


def test_a_step_with_weight_perturbation_is_the_one_written_out():
    some, recipe = data(), Recipe(epochs=1, batch=40, rate=1e-2)
    fitted = train(normed(), some, recipe, Streams(0), awp=0.1)

    slow, order = normed(), torch.randperm(40, generator=Streams(0).torch("batches"))
    x, y = some.x[order], some.y[order]
    optimiser = torch.optim.Adam(slow.parameters(), lr=1e-2)
    plain_loss(slow, x, y).backward()
    shifted = deepcopy(slow)
    with torch.no_grad():
        for ours, theirs in zip(slow.parameters(), shifted.parameters(), strict=True):
            if ours.ndim > 1:
                theirs += 0.1 * ours.norm() * ours.grad / ours.grad.norm()
    shifted.zero_grad()
    plain_loss(shifted, x, y).backward()
    for ours, theirs in zip(slow.parameters(), shifted.parameters(), strict=True):
        ours.grad = theirs.grad
    optimiser.step()
    for (name, found), wanted in zip(fitted.state_dict().items(), slow.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    assert not same(state(fitted), state(train(normed(), some, recipe, Streams(0))))


def test_weight_perturbation_leaves_the_running_statistics_of_plain_training():
    recipe = Recipe(epochs=1, batch=40, rate=1e-2)
    plain, moved = (train(normed(), data(), recipe, Streams(0), awp=size)[1] for size in (0.0, 0.5))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(plain.get_buffer(name), moved.get_buffer(name)), name


@pytest.mark.parametrize(("scores", "winner"), [([0.1, 0.9, 0.9], 1), ([0.3, 0.2, 0.1], 0), ([0, 0, 1], 2)])
def test_the_epoch_that_the_judge_likes_best_is_kept(scores, winner):
    seen: list[dict[str, Tensor]] = []

    def judge(network: nn.Module) -> float:
        assert not network.training
        seen.append(state(network))
        return scores[len(seen) - 1]

    fitted = train(normed(), data(), RECIPE, Streams(0), judge=judge)
    assert len(seen) == 3
    assert not same(seen[0], seen[1])
    assert same(state(fitted), seen[winner])
    assert not fitted.training


def test_a_judge_changes_nothing_about_the_training():
    rising = iter(range(3))
    assert torch.equal(weights(1, judge=lambda network: float(next(rising))), weights(1))


def test_a_watcher_sees_each_epoch_in_evaluation_mode_and_changes_nothing():
    seen = []

    def watch(network: nn.Module, steps: int, rows: int) -> None:
        assert not any(part.training for part in network.modules())
        torch.rand(3)
        seen.append((steps, rows))

    assert torch.equal(weights(1, watch=watch), weights(1))
    assert seen == [(3, 40)] * 3


def test_with_momentum_it_is_plain_gradient_descent_at_a_constant_rate():
    mine, theirs = module().eval(), module().eval()
    recipe = Recipe(epochs=2, batch=40, rate=0.1, momentum=0.9)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    drop = nn.Module.train
    try:
        nn.Module.train = lambda self, mode=True: drop(self, mode=False)  # the dropout of both is off
        train(mine, data(), recipe, Streams(0))
    finally:
        nn.Module.train = drop
    for _ in range(2):
        reference.zero_grad()
        plain_loss(theirs, data().x, data().y).backward()
        reference.step()
    for found, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected)

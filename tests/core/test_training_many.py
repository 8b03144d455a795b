"""Many networks at once, beside the one training loop."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core import training_many
from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import Network, Recipe, plain_loss, train
from firstline.benchmark.core.training_many import train_many
from firstline.tasks.networks import bag_of_tokens, mlp, small_cnn

ADAM = Recipe(epochs=4, batch=16, rate=1e-2, decay=1e-3)
MOMENTUM = Recipe(epochs=4, batch=16, rate=0.1, decay=1e-3, momentum=0.9)
SHAPE = (1, 8, 8)


def smoothed(network: Network, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(network(x), y, label_smoothing=0.1)


def twice(network: Network, x: Tensor, y: Tensor) -> Tensor:
    return plain_loss(network, x, y) + plain_loss(network, x / 2, y)


def noisy(network: Network, x: Tensor, y: Tensor) -> Tensor:
    logits = network(x)
    return cross_entropy(logits + torch.rand_like(logits), y)


def data(dtype: torch.dtype = torch.float32) -> Data:
    x = torch.rand(120, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return Data.of(x, (4 * x.flatten(1)[:, :8].mean(1)).long().clamp(0, 3))


def tanh_mlp() -> nn.Module:
    inner = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 12), nn.Sigmoid())
    return nn.Sequential(nn.Flatten(), inner, nn.Linear(12, 4))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def with_frozen_layer() -> nn.Module:
    network = mlp(64, 4, (8,))
    network[1].requires_grad_(False)
    return network


def with_shared_layer() -> nn.Module:
    shared = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(64, 4))


def without_bias() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))


def cnn() -> nn.Module:
    return small_cnn(SHAPE, 4, width=4, hidden=16)


def drawn(build: Callable[[], nn.Module], count: int) -> tuple[list[nn.Module], Tensor, list[Streams]]:
    """Networks with weights, rows (m = 40, so the third batch of 16 is short) and seeds of their own."""
    rngs = [Streams(seed) for seed in range(count)]
    rows = torch.stack([torch.randperm(120, generator=rng.torch("rows"))[:40] for rng in rngs])
    return [initialise(build, rng) for rng in rngs], rows, rngs


def both_ways(
    build: Callable[[], nn.Module], recipe: Recipe, count: int, some: Data, **more: object
) -> tuple[list[Tensor], list[Tensor]]:
    """All weights and buffers of the networks: trained at once, and in the loop."""
    many, rows, rngs = drawn(build, count)
    loop = [
        train(module, some.rows(own), recipe, rng, loss=more.get("objective", plain_loss))
        for module, own, rng in zip(deepcopy(many), rows, rngs, strict=True)
    ]
    many = train_many(many, some, rows, recipe, rngs, **more)
    assert not any(part.training for module in many for part in module.modules())
    return tuple([t for module in side for t in module.state_dict().values()] for side in (many, loop))


@pytest.fixture
def stacked(monkeypatch):
    """The loop is out of reach, and five networks of these take three stacks."""
    monkeypatch.setattr(training_many, "train", None)
    monkeypatch.setattr(training_many, "TOGETHER", 2 * 4 * sum(p.numel() for p in tanh_mlp().parameters()))


@pytest.mark.parametrize("recipe", [ADAM, MOMENTUM], ids=["adam", "momentum"])
@pytest.mark.parametrize("objective", [plain_loss, smoothed])
@pytest.mark.parametrize("build", [tanh_mlp, lambda: mlp(64, 4, (24, 12))], ids=["tanh", "relu"])
def test_perceptrons_get_the_weights_of_the_loop(stacked, build, recipe, objective):
    untrained = [p.detach() for module in drawn(build, 5)[0] for p in module.parameters()]
    many, loop = both_ways(build, recipe, 5, data(), objective=objective)
    assert max(float((a - b).abs().max()) for a, b in zip(untrained, loop, strict=True)) > 0.05
    torch.testing.assert_close(many, loop, atol=1e-5, rtol=0)


@pytest.mark.parametrize("recipe", [ADAM, MOMENTUM], ids=["adam", "momentum"])
def test_in_double_precision_nothing_but_rounding_differs(stacked, recipe):
    many, loop = both_ways(lambda: tanh_mlp().double(), recipe, 3, data(torch.float64))
    torch.testing.assert_close(many, loop, atol=1e-12, rtol=0)


def test_one_network_is_enough(stacked):
    torch.testing.assert_close(*both_ways(tanh_mlp, MOMENTUM, 1, data()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "build",
    [cnn, with_dropout, with_batch_norm, with_frozen_layer, with_shared_layer, without_bias],
)
def test_other_networks_get_exactly_the_weights_of_the_loop(build):
    many, loop = both_ways(build, ADAM, 3, data())
    assert all(torch.equal(a, b) for a, b in zip(many, loop, strict=True))


@pytest.mark.parametrize("objective", [twice, noisy])
def test_objectives_that_do_more_than_ask_once_get_exactly_the_weights_of_the_loop(objective):
    many, loop = both_ways(tanh_mlp, ADAM, 3, data(), objective=objective)
    assert all(torch.equal(a, b) for a, b in zip(many, loop, strict=True))


def test_tokens_get_exactly_the_weights_of_the_loop():
    tokens = Data.of(torch.randint(0, 9, (120, 6), generator=torch.Generator().manual_seed(0)), data().y)
    many, loop = both_ways(lambda: bag_of_tokens(9, 4), ADAM, 3, tokens)
    assert all(torch.equal(a, b) for a, b in zip(many, loop, strict=True))


def test_networks_that_differ_get_exactly_the_weights_of_the_loop():
    widths = iter([8, 8, 9] * 2)
    many, loop = both_ways(lambda: mlp(64, 4, (next(widths),)), ADAM, 3, data())
    assert all(torch.equal(a, b) for a, b in zip(many, loop, strict=True))


@pytest.mark.parametrize("build", [tanh_mlp, cnn])
def test_what_diverges_is_named(build, monkeypatch):
    monkeypatch.setattr(training_many, "TOGETHER", 1)  # each in a stack of its own
    some = data()
    some.x[7] = float("inf")
    modules, rows, rngs = drawn(build, 4)
    rows[rows == 7] = 8
    rows[2, 5] = 7
    with pytest.raises(FirstlineError, match="network 2: training diverged in epoch 1: the loss is nan"):
        train_many(modules, some, rows, ADAM, rngs)


@pytest.mark.parametrize("build", [tanh_mlp, with_dropout])
def test_the_global_generator_is_left_alone(build):
    modules, rows, rngs = drawn(build, 2)
    before = torch.get_rng_state()
    train_many(modules, data(), rows, ADAM, rngs)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_network_needs_rows_and_a_seed():
    modules, rows, rngs = drawn(tanh_mlp, 3)
    with pytest.raises(ValueError, match=r"got 3 networks, rows of shape \(2, 40\) and 3 streams"):
        train_many(modules, data(), rows[:2], ADAM, rngs)
    assert train_many([], data(), rows[:0], ADAM, []) == []

"""The reference networks: known sizes, known answers, and their definitions restated."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from firstline.benchmark.core.data import InputSpace
from firstline.tasks.networks import (
    Standardise,
    bag_of_tokens,
    encoded_mlp,
    mlp,
    normalised_cnn,
    resnet,
    small_cnn,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"
NETWORKS = {
    "mlp": (lambda: mlp(64, 7), (1, 8, 8)),
    "small-cnn, grey": (lambda: small_cnn((1, 28, 28), 7), (1, 28, 28)),
    "small-cnn, odd sides": (lambda: small_cnn((3, 9, 14), 7), (3, 9, 14)),
    "normalised-cnn": (lambda: normalised_cnn((3, 9, 14), 7), (3, 9, 14)),
    "resnet": (lambda: resnet(3, 7, (1, 1, 1, 1), 8), (3, 32, 32)),
    "standardise": (lambda: nn.Sequential(Standardise((0.5,), (0.2,), 3), mlp(16, 7)), (1, 4, 4)),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_logits_of_a_row_do_not_depend_on_its_batch(name):
    build, shape = NETWORKS[name]
    network, x = build().eval(), torch.rand(5, *shape)
    logits = network(x)
    assert logits.shape == (5, 7)
    torch.testing.assert_close(network(x[2:3]), logits[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_gradient_reaches_the_input_and_every_parameter(name):
    build, shape = NETWORKS[name]
    network, x = build(), torch.rand(4, *shape, requires_grad=True)
    network(x).square().sum().backward()
    assert float(x.grad.abs().max()) > 0
    assert all(float(p.grad.abs().max()) > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (small_cnn((1, 28, 28), 10), 166_406),  # Wong & Kolter 2018: 272 + 8,224 + 156,900 + 1,010
        # 160 + 4,640 in convolutions, 96 of normalisation, 200,832 + 1,290 in linear layers
        (normalised_cnn((1, 28, 28), 10), 207_018),
        (resnet(3, 10), 11_173_962),  # the ResNet-18 of CIFAR-10 papers
        (mlp(4, 3, (5,)), 43),
        (bag_of_tokens(100, 2, 8, 4), 100 * 8 + 9 * 4 + 5 * 2),
    ],
)
def test_the_number_of_parameters_is_the_known_one(network, count):
    assert sum(p.numel() for p in network.parameters()) == count


def test_standardise_subtracts_the_mean_and_divides_by_the_scale_per_channel():
    x = torch.rand(3, 2, 4, 4)
    out = Standardise((0.25, 0.5), (0.5, 2.0), 3)(x)
    torch.testing.assert_close(out[:, 0], (x[:, 0] - 0.25) / 0.5)
    torch.testing.assert_close(out[:, 1], (x[:, 1] - 0.5) / 2.0)


def rows_of_tokens(n: int = 6, length: int = 9, vocabulary: int = 50) -> torch.Tensor:
    x = torch.randint(1, vocabulary, (n, length), generator=torch.Generator().manual_seed(0))
    for row in range(n):
        x[row, length - row :] = 0
    return x


def test_a_bag_of_tokens_is_the_embedding_bag_of_torch():
    x, network = rows_of_tokens(), bag_of_tokens(50, 2)
    bag = nn.EmbeddingBag.from_pretrained(network[0].embedding.weight, mode="mean", padding_idx=0)
    torch.testing.assert_close(network(x), network[1:](bag(x)))


def test_order_and_padding_do_not_count():
    x, network = rows_of_tokens(), bag_of_tokens(50, 2)
    wider = torch.cat([x, torch.zeros(len(x), 4, dtype=torch.int64)], 1)
    torch.testing.assert_close(network(wider), network(x))
    torch.testing.assert_close(network(x.flip(1)), network(x))


def test_a_row_of_padding_alone_has_an_answer():
    assert torch.isfinite(bag_of_tokens(50, 2)(torch.zeros(1, 9, dtype=torch.int64))).all()


def test_many_bags_run_in_one_pass():
    x, networks = rows_of_tokens(), [bag_of_tokens(50, 2) for _ in range(3)]
    parameters, buffers = stack_module_state(networks)
    together = vmap(lambda p, b: functional_call(networks[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([network(x) for network in networks]))


def test_published_weights_keep_their_published_error():
    """Wong & Kolter 2018, MNIST, eps 0.1: error 1.80 %, with the networks that their repository holds."""
    if not SHARED.is_dir():
        pytest.skip(f"the published weights and the real data are not here: no {SHARED}")
    with np.load(SHARED / "data" / "mnist" / "mnist.npz") as mnist:
        x, y = torch.from_numpy(mnist["x_test"])[:, None] / 255, torch.from_numpy(mnist["y_test"])
    stored = torch.load(SHARED / "data" / "weights" / "mnist.pth", weights_only=True, map_location="cpu")
    network = small_cnn((1, 28, 28), 10)
    network.load_state_dict(stored)
    with torch.no_grad():
        wrong = int((network(x).argmax(1) != y).sum())
    assert wrong == 180


def test_codes_become_columns_and_numbers_stay():
    space = InputSpace(
        shape=(3,), high=(1.0, 2.0, 1.0), grid=(0.0, 1.0, 0.0), categorical=(False, True, False)
    )
    encode = encoded_mlp(space, 2)[0]
    x = torch.tensor([[0.5, 0.0, 1.0], [1.0, 2.0, 0.0], [0.0, 7.0, 0.25]])
    expected = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, -1], [-1, 0, 0, 0, -0.5]])  # 7 is no category
    assert torch.equal(encode(x), expected)
    assert encoded_mlp(space, 4)(x).shape == (3, 4)

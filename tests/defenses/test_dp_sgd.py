"""DP-SGD by Opacus: what it sums, adds and draws, against each row's gradient by torch.func and against its epsilon."""

import importlib.util
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import packages
from firstline.benchmark.core.contracts import Context, Defense, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.privacy import PrivateTraining
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import System
from firstline.defenses.dp_sgd import DPSGD, lots
from firstline.defenses.input_noise import InputNoise
from firstline.defenses.label_smoothing import LabelSmoothing
from firstline.defenses.loss_sanitising import LossSanitising
from firstline.tasks.networks import bag_of_tokens, mlp, normalised_cnn, small_cnn

if importlib.util.find_spec("opacus") is None:
    pytest.skip("needs Opacus: firstline[privacy]", allow_module_level=True)

CPU = torch.device("cpu")
TASK = Blobs()
N = 24


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(side: int) -> Data:
    return Data.of(torch.rand(N, 1, side, side, generator=seeded(0)), torch.arange(N) % 4)


def tokens() -> Data:
    return Data.of(torch.randint(0, 20, (N, 6), generator=seeded(0)), torch.arange(N) % 4)


NETWORKS = {
    "mlp": (partial(mlp, 64, 4), pictures(8)),
    "convolutions": (partial(small_cnn, (1, 8, 8), 4), pictures(8)),
    "tokens": (partial(bag_of_tokens, 20, 4), tokens()),
}


def flat(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def trained(defense: DPSGD, build, data: Data, seed: int = 0) -> nn.Module:
    rng = Streams(seed)
    return defense.train(initialise(build, Streams(0)), data, Context(TASK, rng, CPU))


def per_row(module: nn.Module, data: Data) -> Tensor:
    """The gradient of each row's loss (n, parameters), one row at a time in one batched pass of torch.func."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(module, weights, (x[None],)), y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, data.x, data.y)
    return torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_without_noise_goes_down_the_sum_of_clipped_gradients(name):
    build, data = NETWORKS[name]
    before = initialise(build, Streams(0))
    gradients = per_row(before, data)
    lengths = gradients.norm(dim=1)
    clip = lengths.median().item()  # some are clipped and some are not
    assert lengths.min() < 0.99 * clip < 1.01 * clip < lengths.max()
    wanted = (gradients * (clip / lengths).clamp(max=1)[:, None]).sum(0)
    once = DPSGD(noise=0.0, clip=clip, lot=N, epochs=1, rate=0.5)
    moved = flat(before) - flat(trained(once, build, data))
    assert_close(moved, 0.5 * wanted / N, atol=1e-6, rtol=1e-4)


def test_noise_has_the_standard_deviation_sigma_times_clip():
    build, data = partial(mlp, 64, 4, (256, 128)), pictures(8)
    once = DPSGD(noise=0.0, clip=0.5, lot=N, epochs=1, rate=1.0)
    quiet, noisy = (flat(trained(replace(once, noise=sigma), build, data)) for sigma in (0.0, 3.0))
    noise = (quiet - noisy) * N
    assert noise.std().item() == pytest.approx(3.0 * 0.5, rel=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.03)


def test_a_step_that_draws_nobody_takes_the_noise_all_the_same():
    build, data = NETWORKS["tokens"]
    defense = DPSGD(noise=2.0, clip=1.0, lot=1, epochs=1, rate=1.0)
    run = defense.privacy(TASK, N)
    seed = next(
        s for s in range(99) if any(len(lot) == 0 for lot in lots(N, run, Streams(s).torch("batches")))
    )
    moved = flat(trained(defense, build, data, seed)) - flat(initialise(build, Streams(0)))
    # Sums of clipped gradients are small beside so much noise: every one of the steps adds its own.
    assert moved.std().item() == pytest.approx(2.0 * run.steps**0.5, rel=0.1)


def test_rows_are_drawn_each_by_itself_at_one_rate():
    run = PrivateTraining(1.0, 1.0, share=0.25, steps=4000, delta=1e-5)
    drawn = torch.zeros(run.steps, 12)
    for step, rows in enumerate(lots(12, run, seeded(0))):
        drawn[step, rows] = 1
    assert_close(drawn.mean(0), torch.full((12,), 0.25), atol=0.03, rtol=0)
    # Sizes are binomial, where batches of a shuffled epoch are all alike; and no two rows go together.
    assert drawn.sum(1).var().item() == pytest.approx(12 * 0.25 * 0.75, rel=0.1)
    assert (torch.corrcoef(drawn.T) - torch.eye(12)).abs().max() < 0.07
    # Nor does a step depend on the one before.
    assert torch.corrcoef(torch.stack([drawn[1:].flatten(), drawn[:-1].flatten()]))[0, 1].abs() < 0.02


def test_the_same_seed_draws_the_same_lots_and_noise_and_another_seed_others():
    build, data = NETWORKS["mlp"]
    defense = DPSGD(lot=6, epochs=1)
    first, again, other = (flat(trained(defense, build, data, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_nothing_of_opacus_stays_on_the_network():
    build, data = NETWORKS["convolutions"]
    module = trained(DPSGD(lot=6, epochs=1), build, data)
    plain = initialise(build, Streams(0))
    assert not module.training
    for layer, other in zip(module.modules(), plain.modules(), strict=True):
        assert set(vars(layer)) == set(vars(other))
        assert not layer._forward_hooks
        assert not layer._backward_hooks
    assert not any(vars(parameter) for parameter in module.parameters())


def test_it_says_what_it_did():
    assert DPSGD(noise=2.0, clip=0.5, lot=100, epochs=3, delta=1e-4).privacy(TASK, 1500) == PrivateTraining(
        noise=2.0, clip=0.5, share=100 / 1500, steps=45, delta=1e-4
    )


def free(width: int) -> nn.Module:
    """Batch normalisation without anything to learn, which mixes rows as any other does."""
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(width, affine=False), nn.Linear(width, 4))


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (partial(normalised_cnn, (1, 8, 8), 4), "BatchNorm2d"),
        (partial(free, 64), "BatchNorm1d"),
        (lambda: nn.Sequential(nn.Flatten(2), nn.MultiheadAttention(8, 2)), "MultiheadAttention"),
    ],
    ids=["normalised", "nothing to learn", "attention"],
)
def test_a_network_that_mixes_rows_is_told_what_to_do(build, kind):
    said = f"dp-sgd.*: in a network with {kind} no row has a gradient of its own to clip; choose another"
    with pytest.raises(FirstlineError, match=said):
        trained(DPSGD(lot=6), build, pictures(8))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lot": 0}, "a lot is 0 of 24 rows; choose a lot from 1 to 24"),
        ({"lot": 25}, "a lot is 25 of 24 rows"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"clip": 0.0}, "clip positive"),
        ({"epochs": 0}, "steps at least 1"),
        ({"delta": 1.0}, r"delta in \(0, 1\)"),
    ],
)
def test_settings_that_allow_no_training_are_told(wrong, said):
    with pytest.raises(FirstlineError, match=said):
        trained(replace(DPSGD(lot=6), **wrong), *NETWORKS["mlp"])


def test_without_opacus_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(FirstlineError, match=r"opacus, which is not .* pip install 'firstline\[privacy\]'"):
        DPSGD()


@dataclass(frozen=True)
class Tuned(Defense):
    """Looks at training data once more when all is trained."""

    name = "tuned"

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        pass


def test_a_stack_is_private_where_its_trainer_is_and_no_other_layer_looks_at_data():
    private = DPSGD(lot=16)
    claim = private.privacy(TASK, 256)
    assert Stack((private,)).privacy(TASK, 256) == claim
    assert Stack((InputNoise(), private)).privacy(TASK, 256) == claim
    assert Stack((private, Tuned())).privacy(TASK, 256) is None
    assert Stack((LossSanitising(), private)).privacy(TASK, 256) is None
    assert Stack(()).privacy(TASK, 256) is None
    assert Stack((LabelSmoothing(),)).privacy(TASK, 256) is None

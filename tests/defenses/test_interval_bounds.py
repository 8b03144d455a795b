"""Interval bounds: they hold, they are exact where they can be, and no attack gets past what they prove."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.attacks.evasion.pgd import PGD
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import training
from firstline.benchmark.core.contracts import Architecture, Context, initialise
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import INVALID, Bare, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses import interval_bound_propagation as ibp
from firstline.defenses.interval_bound_propagation import IntervalBoundPropagation
from firstline.defenses.logit_scaling import LogitScaling
from firstline.tasks.digits import Digits
from firstline.tasks.networks import Standardise, lenet5, mlp, resnet, small_cnn

CPU = torch.device("cpu")
TASK = Blobs()
TEST = TASK.load(None).test
NETWORKS = {
    "mlp": (lambda: mlp(64, 5), (1, 8, 8)),
    "small-cnn": (lambda: small_cnn((1, 8, 8), 5), (1, 8, 8)),
    "lenet5": (lambda: lenet5(5), (1, 28, 28)),
    "standardise": (lambda: nn.Sequential(Standardise((0.5,), (0.2,), 3), mlp(16, 5)), (1, 4, 4)),
    "odd convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding="same", dilation=2, groups=2, bias=False),
            nn.AvgPool2d(2),
            nn.Identity(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5, bias=False),
        ),
        (2, 8, 8),
    ),
}


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.5])
def test_the_bounds_hold_all_outputs_of_the_box(name, eps):
    build, shape = NETWORKS[name]
    network = initialise(build, Streams(0))
    x = torch.rand(4, *shape, generator=chance(1))
    box = ibp.around(x, eps, InputSpace(shape))
    low, high = ibp.box_of(network, *box)
    y = network(x).argmax(1)
    worst = ibp.worst_margins(network, y, *box)
    for draw in range(60):
        share = torch.rand(x.shape, generator=chance(2 + draw))
        inside = box[0] + (share.round() if draw % 2 else share) * (box[1] - box[0])
        out = network(inside)
        assert (out >= low - 1e-4).all()
        assert (out <= high + 1e-4).all()
        assert (out - out.gather(1, y[:, None]) <= worst + 1e-4).all()
    if eps == 0:
        torch.testing.assert_close(low, high, atol=1e-4, rtol=0)
        torch.testing.assert_close(low, network(x), atol=1e-4, rtol=1e-4)


def test_the_bounds_of_one_linear_layer_are_reached():
    layer = initialise(lambda: nn.Linear(6, 3), Streams(0))
    low, high = torch.rand(1, 6, generator=chance()) - 1, torch.rand(1, 6, generator=chance(1))
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    reached = layer(low + corners * (high - low))
    least, most = ibp.box_of(layer, low, high)
    torch.testing.assert_close(least[0], reached.amin(0))
    torch.testing.assert_close(most[0], reached.amax(0))
    y = torch.tensor([2])
    worst = ibp.worst_margins(layer, y, low, high)
    torch.testing.assert_close(worst[0], (reached - reached[:, 2:]).amax(0))
    assert (
        worst[0, :2] < (most - least[:, 2:])[0, :2] - 1e-3
    ).all()  # tighter than layer and difference in turn


def best() -> System:
    """The oracle's best classifier with a layer for which there is a rule."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    network.load_state_dict(TASK.best().module.state_dict())
    return Bare(network)


def test_a_linear_classifier_is_proved_up_to_its_boundary():
    system = IntervalBoundPropagation().deploy(best(), TASK)
    x = TEST.x.clamp(0.3, 0.7)  # far from the box of valid inputs
    proof = system.certify(x, "linf", chance())
    torch.testing.assert_close(proof.radii, (x.flatten(1).mean(1) - 0.5).abs(), atol=2e-5, rtol=0)
    assert torch.equal(proof.labels, best().respond(x, chance()).labels)


def test_what_no_valid_input_can_change_is_proved_up_to_the_range():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([-torch.ones(64), torch.ones(64)]))
        network[1].bias.copy_(torch.tensor([-1.0, 1.0]))  # 1 wherever pixels are not negative
    proof = IntervalBoundPropagation().deploy(Bare(network), TASK).certify(TEST.x[:5], "linf", chance())
    assert proof.radii.tolist() == pytest.approx([1.0] * 5, abs=1e-5)


def test_an_answer_that_is_no_number_is_not_proved():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.constant_(network[1].weight, torch.nan)
    proof = IntervalBoundPropagation().deploy(Bare(network), TASK).certify(TEST.x[:3], "linf", chance())
    assert proof.labels.tolist() == [INVALID] * 3
    assert not proof.radii.any()


@pytest.mark.parametrize("norm", ["l2", "l1", "l0"])
def test_other_norms_are_not_proved(norm):
    assert IntervalBoundPropagation().deploy(best(), TASK).certify(TEST.x[:2], norm, chance()) is None


@pytest.fixture(scope="module")
def trained() -> System:
    task = Digits()
    defense = IntervalBoundPropagation(eps=0.06, stretch=1)
    return Stack((defense,)).fit(task, task.load(None).train, Streams(0), CPU).system


def test_training_makes_answers_that_can_be_proved_and_no_attack_gets_past_them(trained):
    task = Digits()
    test = task.load(None).test.rows(torch.arange(200))
    proof = trained.certify(test.x, "linf", chance())
    right = proof.labels == test.y
    held = right & (proof.radii >= 0.06)
    assert float(right.float().mean()) > 0.85
    assert float(held.float().mean()) > 0.6
    region = Region(test.x.clone(), task.space, "linf", torch.where(right, proof.radii, 0.0))
    door = Target(
        trained,
        Threat.parse("evasion/white/linf:0.06"),
        space=task.space,
        classes=10,
        rng=Streams(0),
        examples=200,
    )
    found = PGD(loss="margin", steps=20, stride=0.2).perturb(
        door, test.x.clone(), test.y.clone(), region, Streams(1)
    )
    assert torch.equal(trained.respond(found, chance()).labels[right], test.y[right])


def test_a_network_that_was_not_trained_for_it_has_next_to_no_proof():
    task = Digits()
    plain = Stack(()).fit(task, task.load(None).train, Streams(0), CPU).system
    proof = IntervalBoundPropagation().deploy(plain, task).certify(task.load(None).test.x, "linf", chance())
    assert float((proof.radii >= 0.06).float().mean()) < 0.02


def test_the_radius_and_the_share_of_the_bounds_rise_to_what_was_asked(monkeypatch):
    widths: list[float] = []
    values: list[tuple[Tensor, Tensor, Tensor]] = []
    bound, loop = ibp.worst_margins, training.train

    def spied(network: nn.Module, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
        widths.append(float((high - low).max()) / 2)
        return bound(network, y, low, high)

    def spy(module, data, recipe, rng, *, loss):
        def watched(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            value = loss(network, x, y)
            low, high = ibp.around(x, widths[-1], TASK.space)
            values.append(
                (value, cross_entropy(network(x), y), cross_entropy(bound(network, y, low, high), y))
            )
            return value

        return loop(module, data, recipe, rng, loss=watched)

    monkeypatch.setattr(ibp, "worst_margins", spied)
    monkeypatch.setattr(ibp, "train", spy)
    defense = IntervalBoundPropagation(eps=0.04, kappa=0.25, warm=0.1, ramp=0.4, stretch=2)
    defense.train(TASK.default.build(), TASK.load(None).train, Context(TASK, Streams(0), CPU))
    assert len(widths) == 2 * 10 * 8  # twice the recipe's steps
    assert max(widths[:16]) == pytest.approx(0, abs=1e-6)
    assert widths[48] == pytest.approx(0.02, abs=1e-3)
    assert widths[80:] == pytest.approx([0.04] * 80, abs=1e-6)
    for step, kappa in ((0, 1.0), (48, 0.625), (-1, 0.25)):
        value, usual, worst = (float(part.detach()) for part in values[step])
        assert value == pytest.approx(kappa * usual + (1 - kappa) * worst, rel=1e-3)


@dataclass(frozen=True)
class Other(Blobs):
    """The oracle with another network."""

    @property
    def architectures(self) -> dict[str, Architecture]:
        (one,) = super().architectures.values()
        return {"other": replace(one, build=self.network)}

    @staticmethod
    def network() -> nn.Module:
        return resnet(1, 2, (1,), 4)


class Batched(Other):
    @staticmethod
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 2))


class Bent(Other):
    @staticmethod
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.ReLU())


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Other(), r"no rule for the layer BatchNorm2d\(4"),
        (Batched(), r"no rule for the layer BatchNorm1d\(64"),
        (Bent(), r"ends in a linear layer; this one ends in ReLU"),
    ],
    ids=["resnet", "batch-norm", "no linear end"],
)
def test_a_network_that_has_no_bounds_is_told_which_layer(task, said):
    with pytest.raises(FirstlineError, match=said):
        Stack((IntervalBoundPropagation(),)).fit(task, task.load(None).train, Streams(0), CPU)


def test_it_proves_a_bare_network_only():
    with pytest.raises(FirstlineError, match="let it be the first layer that deploys"):
        Stack((LogitScaling(), IntervalBoundPropagation())).skeleton(TASK)


@pytest.mark.parametrize("settings", [{"kappa": 1.5}, {"warm": -0.1}, {"ramp": 0.0}, {"stretch": 0}])
def test_settings_that_make_no_course_are_refused(settings):
    with pytest.raises(FirstlineError, match="kappa is a share"):
        IntervalBoundPropagation(**settings).train(TASK.default.build(), TEST, Context(TASK, Streams(0), CPU))


def test_a_task_without_a_linf_radius_is_told():
    class Round(Blobs):
        eps = {"l2": 0.5}  # noqa: RUF012

    with pytest.raises(FirstlineError, match="blobs has no customary linf radius; set eps"):
        IntervalBoundPropagation().train(TASK.default.build(), TEST, Context(Round(), Streams(0), CPU))


def test_the_bisection_ends_within_a_millionth_of_the_range():
    assert math.ldexp(1, -ibp.ROUNDS) < 1e-6

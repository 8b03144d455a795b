"""Defenses that the literature broke: each hides from the attack that it was published against, and falls to another."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from firstline.attacks.evasion.pgd import PGD
from firstline.attacks.evasion.standard import Standard
from firstline.attacks.evasion.uniform_noise import UniformNoise
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Defense, Evasion, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.limits import judge
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols.gate import EXAMPLES, Probe, figures
from firstline.defenses.adversarial_training import AdversarialTraining
from firstline.defenses.distillation import DefensiveDistillation, soft_cross_entropy
from firstline.defenses.input_noise import InputNoise
from firstline.defenses.k_winners import KWinners, KWinnersTakeAll
from firstline.defenses.logit_scaling import LogitScaling
from firstline.defenses.none import NoDefense
from firstline.defenses.quantisation import Quantisation, Quantised
from firstline.defenses.random_resizing import RandomResizing
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

TASK = Digits()
SPLITS = TASK.load(None)
TEST = SPLITS.test.rows(torch.arange(150))
EPS = TASK.eps["linf"]
BROKEN = (DefensiveDistillation, KWinnersTakeAll, LogitScaling, Quantisation, RandomResizing)


def fit(defense: Defense, task: Task = TASK, train: Data = SPLITS.train) -> System:
    return Stack((defense,)).fit(task, train, Streams(0), torch.device("cpu")).system


@pytest.fixture(scope="module")
def plain() -> System:
    return fit(NoDefense())


@pytest.fixture(scope="module")
def distilled() -> System:
    return fit(DefensiveDistillation())


@pytest.fixture(scope="module")
def winners() -> System:
    return fit(KWinnersTakeAll())


def labels(system: System, x: Tensor, seed: int = 0) -> Tensor:
    with torch.no_grad():
        return system.respond(x, torch.Generator().manual_seed(seed)).labels


def door(system: System) -> Target:
    threat = Threat.parse(f"evasion/white/linf:{EPS}")
    return Target(system, threat, space=TASK.space, classes=10, rng=Streams(0), examples=len(TEST))


def standing(system: System, attack: Evasion, watched: System | None = None) -> float:
    """What share of the digits system still gets right, under an attack that looks at watched instead."""
    region = Region(TEST.x.clone(), TASK.space, "linf", EPS)
    found = attack.perturb(door(watched or system), TEST.x.clone(), TEST.y.clone(), region, Streams(1))
    held = (labels(system, TEST.x) == TEST.y) & (labels(system, found, seed=1) == TEST.y)
    return float(held.float().mean())


def flat(system: System) -> float:
    """The share of clean digits at which the gradient of the cross-entropy is exactly 0."""
    gradient = door(system).slope(TEST.x, TEST.y).gradient
    return float((gradient == 0).flatten(1).all(1).float().mean())


@pytest.mark.parametrize("cls", BROKEN)
def test_they_say_that_they_are_broken_and_by_what(cls):
    assert cls.tags == {"broken"}
    assert "Claims" in cls.__doc__
    assert "Broken by" in cls.__doc__


@pytest.mark.parametrize("cls", [cls for cls in BROKEN if cls is not RandomResizing])
def test_they_work_on_tables_too(cls):
    task = BreastCancer()
    splits = task.load(None)
    right = labels(fit(cls(), task, splits.train), splits.test.x) == splits.test.y
    assert float(right.float().mean()) > 0.8


def test_the_softened_cross_entropy_of_certain_answers_is_the_usual_one():
    logits, y = (
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 3, 0, 1]),
    )
    certain = nn.functional.one_hot(y, 4).float()
    torch.testing.assert_close(soft_cross_entropy(logits, certain), nn.functional.cross_entropy(logits, y))


def test_the_softened_cross_entropy_is_least_where_both_agree():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, torch.softmax(logits.detach(), 1)), logits)
    torch.testing.assert_close(gradient, torch.zeros(6, 4))


def test_distillation_makes_logits_as_large_as_its_temperature(plain, distilled):
    spread = [float(system.respond(TEST.x, torch.Generator()).logits.std()) for system in (plain, distilled)]
    assert spread[1] > 10 * spread[0]


def test_distillation_flattens_the_cross_entropy_and_falls_to_the_margin(distilled):
    assert flat(distilled) > 0.7
    assert standing(distilled, PGD()) > 0.7
    assert standing(distilled, PGD(loss="margin")) < 0.2


def test_scaled_logits_flatten_the_cross_entropy_and_change_no_answer(plain):
    scaled = LogitScaling().deploy(plain, TASK)
    assert torch.equal(labels(scaled, TEST.x), labels(plain, TEST.x))
    assert flat(plain) == 0
    assert flat(scaled) > 0.9
    assert standing(scaled, PGD()) > 0.8
    assert standing(scaled, PGD(loss="dlr")) == standing(plain, PGD(loss="dlr"))


def test_scaled_logits_still_refuse():
    class Refusing(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            return Response(x.flatten(1)[:, :10], x.flatten(1)[:, 0] - 0.5)

    answer = LogitScaling(factor=10.0).deploy(Refusing(), TASK).respond(TEST.x, torch.Generator())
    torch.testing.assert_close(answer.logits, TEST.x.flatten(1)[:, :10] * 10)
    assert torch.equal(answer.accepted, TEST.x.flatten(1)[:, 0] >= 0.5)


class Echo(System):
    """Answers with the pixels that reached it."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(x.flatten(1))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_inputs_are_rounded_to_so_many_levels(bits):
    seen = Quantisation(bits=bits).deploy(Echo(), TASK).respond(torch.rand(500, 1, 8, 8), torch.Generator())
    assert len(seen.logits.unique()) == 2**bits
    assert float(seen.logits.min()) == 0
    assert float(seen.logits.max()) == 1


def test_nothing_is_rounded_out_of_a_feature_that_has_one_value():
    class Table(Blobs):
        space = replace(Blobs.space, low=(0.0,) * 64, high=(1.0,) * 63 + (0.0,))

    seen = Quantisation().deploy(Echo(), Table()).respond(torch.zeros(3, 1, 8, 8), torch.Generator())
    assert not seen.logits.any()


class StraightThrough(Quantised):
    """The adaptive attacker's view: the rounding is the identity on the way back."""

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        low, step = self.get_buffer("low"), self.get_buffer("step")
        near = low + torch.round((x.detach() - low) / step) * step
        return self._inside().respond(near + (x - x.detach()), rng)


def test_rounding_stops_gradients_and_nothing_else(plain):
    rounded = Quantisation().deploy(plain, TASK)
    seen = StraightThrough(plain, 8, torch.tensor(0.0), torch.tensor(1.0))
    clean = float((labels(rounded, TEST.x) == TEST.y).float().mean())
    assert flat(rounded) == 1
    assert standing(rounded, PGD(random_start=False)) == clean
    assert standing(rounded, UniformNoise()) < clean
    assert standing(rounded, PGD(loss="margin"), watched=seen) < 0.35


@pytest.mark.parametrize("bits", [0, -1])
def test_no_bits_are_no_setting(bits):
    with pytest.raises(FirstlineError, match="bits must be at least 1"):
        Quantisation(bits=bits).deploy(Echo(), TASK)


def resized(x: Tensor, seed: int = 0, **settings: float) -> Tensor:
    system = RandomResizing(**settings).deploy(Echo(), TASK)
    return system.respond(x, torch.Generator().manual_seed(seed)).logits.reshape(x.shape)


def test_resizing_to_the_whole_canvas_changes_nothing():
    torch.testing.assert_close(resized(TEST.x, least=1.0), TEST.x, atol=1e-5, rtol=0)


def test_an_image_shrinks_and_moves_but_stays_on_its_canvas():
    image = torch.zeros(400, 1, 8, 8)
    image[:, :, 2:6, 2:6] = 1.0
    small = resized(image, least=0.5)
    share = small.flatten(1).sum(1) / 16
    assert float(share.min()) == pytest.approx(0.25, abs=0.05)
    assert float(share.max()) == pytest.approx(1.0, abs=0.05)
    assert len(share.unique()) > 300  # every image by itself
    places = small.flatten(1).argmax(1).unique()
    assert len(places) > 10


def test_a_grey_image_stays_grey():
    grey = torch.full((20, 1, 8, 8), 0.4)
    torch.testing.assert_close(resized(grey, least=0.5), grey)


def test_resizing_is_drawn_from_the_generator_alone():
    assert torch.equal(resized(TEST.x, 1), resized(TEST.x, 1))
    assert not torch.equal(resized(TEST.x, 1), resized(TEST.x, 2))


def test_resizing_falls_to_an_attacker_who_averages_and_hides_from_one_who_is_not_told(plain):
    honest = RandomResizing().deploy(plain, TASK)
    liar = RandomResizing(declared=False).deploy(plain, TASK)
    assert honest.stochastic
    assert not liar.stochastic
    assert torch.equal(labels(honest, TEST.x), labels(liar, TEST.x))
    assert not torch.equal(labels(liar, TEST.x), labels(liar, TEST.x, seed=1))  # for the gate to find
    assert standing(honest, PGD()) < 0.35
    assert standing(liar, PGD()) > standing(honest, PGD()) + 0.2


def test_a_lie_does_not_spread_to_what_is_inside(plain):
    inner = RandomResizing().deploy(plain, TASK)
    assert RandomResizing(declared=False).deploy(inner, TASK).stochastic


def test_only_images_are_resized():
    with pytest.raises(
        FirstlineError, match=r"random-resizing is for images .* breast-cancer have shape \(30,\)"
    ):
        RandomResizing().deploy(Bare(nn.Identity()), BreastCancer())


@pytest.mark.parametrize("least", [0.0, 1.5])
def test_a_share_of_the_canvas_is_a_share(least):
    with pytest.raises(FirstlineError, match="least is a share"):
        RandomResizing(least=least).deploy(Bare(nn.Identity()), TASK)


@pytest.mark.parametrize(("share", "kept"), [(0.1, 6), (0.25, 16), (1.0, 64), (0.001, 1)])
def test_the_winners_take_all(share, kept):
    x = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    left = KWinners(share)(x)
    assert (left != 0).flatten(1).sum(1).tolist() == [kept] * 5
    assert torch.equal(left[left != 0], x[left != 0])
    lost = x.masked_fill(left != 0, -9.0).flatten(1).amax(1)
    assert (lost < x.masked_fill(left == 0, 9.0).flatten(1).amin(1)).all()
    assert torch.equal(left[:1], KWinners(share)(x[:1]))


def test_every_rectifier_is_replaced():
    network = KWinnersTakeAll(share=0.3).build(TASK)
    assert not any(isinstance(layer, nn.ReLU) for layer in network.modules())
    assert [layer.share for layer in network.modules() if isinstance(layer, KWinners)] == [0.3] * 3


def test_a_network_without_rectifiers_is_told():
    class Linear(Blobs):
        @property
        def architectures(self):
            (one,) = super().architectures.values()
            return {"linear": replace(one, build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))}

    with pytest.raises(FirstlineError, match=r"replaces nn.ReLU layers; the network of blobs has none"):
        KWinnersTakeAll().build(Linear())


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_of_winners_is_a_share(share):
    with pytest.raises(FirstlineError, match="share is a share"):
        KWinnersTakeAll(share=share).build(TASK)


def test_winners_mislead_one_gradient_and_fall_to_many_starts_and_to_noise(winners, plain):
    once = standing(winners, PGD(loss="dlr"))
    many = standing(winners, PGD(loss="dlr", steps=20, stride=0.2, restarts=20))
    assert many < once - 0.1
    assert many < 0.2
    noise = UniformNoise(draws=100)
    assert standing(winners, noise) < standing(plain, noise) - 0.1


def verdict(system: System, norm: str = "linf") -> str:
    """What the gate says of a system under the task's usual radius."""
    right = (labels(system, TEST.x) == TEST.y).nonzero().squeeze(1)[:EXAMPLES]
    threat = Threat.parse(f"evasion/white/{norm}:{TASK.eps[norm]}")
    return judge(figures(Probe(system, TEST.rows(right), threat, TASK.space, 10, Streams(0)))).verdict


@pytest.mark.parametrize("cls", BROKEN)
def test_each_fails_the_gate_or_falls_to_standard_as_if_undefended(cls, plain):
    system = fit(cls())
    assert verdict(system) == "fail" or standing(system, Standard()) <= standing(plain, Standard()) + 0.05


def test_resizing_that_is_not_declared_fails_the_gate(plain):
    assert verdict(RandomResizing(declared=False).deploy(plain, TASK)) == "fail"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("defense", [NoDefense(), AdversarialTraining(), InputNoise()], ids=str)
def test_honest_systems_never_fail_the_gate(defense, norm):
    assert verdict(fit(defense), norm) != "fail"

"""Minimal-norm attacks against closed forms: how far the boundary is, is known on a linear system."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from firstline.attacks.evasion.carlini_wagner import CarliniWagner
from firstline.attacks.evasion.closest import log_odds
from firstline.attacks.evasion.ddn import DDN
from firstline.attacks.evasion.deepfool import DeepFool
from firstline.attacks.evasion.fab import FAB
from firstline.attacks.evasion.fmn import FMN
from firstline.attacks.evasion.hyperplane import crossing
from firstline.attacks.evasion.pdpgd import PDPGD
from firstline.attacks.evasion.sigma_zero import SigmaZero
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import MinimalNorm, initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import cross_entropies
from firstline.benchmark.core.norms import column, distance
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED, Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

TASK = Blobs(gap=0.4)  # so that some are wrong already
TEST = TASK.load(None).test.rows(torch.arange(64))
ATTACKS = [DDN(), FMN(), PDPGD(), CarliniWagner(), DeepFool(), SigmaZero(), FAB()]
CASES = [
    pytest.param(attack, norm, id=f"{attack.name} {norm}") for attack in ATTACKS for norm in attack.goals
]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


def attacked(
    attack: MinimalNorm,
    norm: str,
    *,
    system: System | None = None,
    data: Data = TEST,
    space: InputSpace = TASK.space,
    classes: int = 2,
    batch: int | None = None,
) -> tuple[Tensor, Target]:
    target = Target(
        system or TASK.best(),
        Threat.parse(f"evasion/white/{norm}:1"),
        space=space,
        classes=classes,
        rng=Streams(0),
        examples=len(data),
        batch=batch,
    )
    x = data.x.clone()
    found = attack.minimise(target, x, data.y.clone(), Region(x, space, norm, 1.0), Streams(7))
    assert torch.equal(x, data.x), "it wrote to its inputs"
    return found, target


def answers(system: System, x: Tensor) -> Tensor:
    return system.respond(x, torch.Generator()).labels


def signed(data: Data) -> Tensor:
    """How far the mean pixel lies on the right side of one half, times the number of pixels."""
    return (data.x.flatten(1).mean(1) - 0.5) * 64 * (2 * data.y - 1)


def closest_possible(data: Data, norm: str) -> Tensor:
    """The distance to the boundary of the best classifier; below 0 where the answer is wrong already."""
    if norm == "l0":
        room = torch.where(column(data.y, data.x) > 0, data.x, 1 - data.x).flatten(1)
        reached = room.sort(1, descending=True).values.cumsum(1)
        return torch.where(signed(data) < 0, -1, (reached < signed(data)[:, None]).sum(1) + 1)
    return signed(data) / {"linf": 64, "l2": 8, "l1": 1}[norm]


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_the_distance_is_that_of_mathematics(attack, norm):
    found, target = attacked(attack, norm)
    least, far = closest_possible(TEST, norm), distance(found, TEST.x, norm)
    right = least > 0
    assert (answers(TASK.best(), found) != TEST.y).all()
    little = {"linf": 2e-3, "l2": 16e-3, "l1": 0.1, "l0": 1}[norm]  # for those next to the boundary
    assert (far[right] >= least[right] * (1 - 1e-3) - little / 100).all()
    assert (far[right] <= least[right] * 1.12 + little).all()
    assert torch.equal(found[~right], TEST.x[~right])
    assert (target.gradients[~right] == 1).all()
    assert int(target.queries.sum()) == 0


@pytest.mark.parametrize("norm", DeepFool.goals)
def test_deepfool_is_exact_on_a_linear_system_up_to_its_overshoot(norm):
    far = TEST.rows(closest_possible(TEST, norm) > 0)
    found, target = attacked(DeepFool(pace=1.0, overshoot=0.02), norm, data=far)
    ratio = distance(found, far.x, norm) / closest_possible(far, norm)
    inner = ((found > 0) & (found < 1)).flatten(1).all(1)
    on_it = (
        ratio[inner] < 1.01
    )  # by rounding, the first step may lie on the wrong side of the boundary already
    assert inner.sum() > 20
    torch.testing.assert_close(ratio[inner], torch.where(on_it, 1.0, 1.02), rtol=1e-3, atol=0)
    assert (target.gradients <= 4).all()


@pytest.mark.parametrize("attack", [DeepFool(), FAB(targets=2), FAB()], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_nearest_of_several_classes_is_found(attack, norm):
    linear = initialise(lambda: nn.Linear(12, 5), Streams(3))
    system = Bare(linear).eval().requires_grad_(False)
    x = 0.4 + 0.2 * torch.rand(32, 12, generator=torch.Generator().manual_seed(0))
    logits = linear(x)
    y = logits.argmax(1)
    gap = logits.gather(1, y[:, None]) - logits
    slope = torch.linalg.vector_norm(linear.weight[y][:, None] - linear.weight, ord=DUAL[norm], dim=2)
    least = (gap / slope).nan_to_num(torch.inf).masked_fill(gap == 0, torch.inf).amin(1)
    easy = least < 0.35  # the others may meet the box
    space = InputSpace(shape=(12,))
    found, _ = attacked(attack, norm, system=system, data=Data.of(x, y), space=space, classes=5)
    far = distance(found, x, norm)
    assert easy.sum() > 5
    assert (far[easy] <= least[easy] * 1.02).all()


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_an_example_meets_the_same_attack_whoever_else_is_attacked(attack, norm):
    system = Bare(
        initialise(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 3)), Streams(1)
        )
    )
    system = system.eval().requires_grad_(False)
    x = TEST.x[:6]
    data = Data.of(x, answers(system, x))
    # One input at a time: a larger batch rounds otherwise, which a long search makes much of.
    whole, meter = attacked(attack, norm, system=system, data=data, classes=3, batch=1)
    few, other = attacked(
        attack, norm, system=system, data=data.rows(torch.tensor([4, 1])), classes=3, batch=1
    )
    torch.testing.assert_close(whole[[4, 1]], few, rtol=0, atol=1e-5)
    assert torch.equal(meter.gradients[[4, 1]], other.gradients)
    assert (answers(system, whole) != data.y).float().mean() > 0.7


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_features_that_may_not_move_stay_and_points_lie_on_the_grid(attack, norm):
    space = replace(TASK.space, grid=1 / 32, mutable=(True,) * 48 + (False,) * 16)
    data = replace(TEST, x=space.round(TEST.x))
    found, _ = attacked(attack, norm, data=data, space=space)
    assert torch.equal(found, torch.where(space.movable(found) > 0, space.round(found), data.x))
    right = answers(TASK.best(), data.x) == data.y
    fooled = answers(TASK.best(), found) != data.y
    assert fooled[right].float().mean() == 1
    if norm in ("linf", "l2"):
        least = signed(data) / {"linf": 48, "l2": 48**0.5}[norm]
        most = (
            least * 1.12 + {"linf": 1 / 32, "l2": 48**0.5 / 32}[norm]
        )  # each feature goes on to the next step
        assert (distance(found, data.x, norm) <= most)[right & fooled].all()


@pytest.mark.parametrize(("attack", "norm"), CASES)
@pytest.mark.parametrize("n", [0, 1])
def test_few_examples_are_no_trouble(attack, norm, n):
    found, _ = attacked(attack, norm, data=TEST.rows(torch.arange(n)))
    assert found.shape == TEST.x[:n].shape
    assert (answers(TASK.best(), found) != TEST.y[:n]).all()


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_where_nothing_may_move_or_all_is_wrong_the_inputs_come_back(attack, norm):
    frozen = replace(TASK.space, mutable=(False,) * 64)
    assert torch.equal(attacked(attack, norm, space=frozen)[0], TEST.x)
    wrong = replace(TEST, y=answers(TASK.best(), TEST.x) ^ 1)
    found, target = attacked(attack, norm, data=wrong)
    assert torch.equal(found, TEST.x)
    assert target.gradients.tolist() == [1] * len(TEST)


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_a_system_without_slope_yields_nothing_and_no_nan(attack, norm):
    class Flat(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            flat = x.flatten(1).sum(1) * 0
            return Response(torch.stack([flat + 1, flat], 1))

    data = replace(TEST, y=torch.zeros_like(TEST.y))
    assert torch.equal(attacked(attack, norm, system=Flat(), data=data)[0], TEST.x)


class Shaky(System):
    """The best classifier, on inputs that it jitters."""

    def __init__(self) -> None:
        super().__init__(TASK.best())
        self.stochastic = True

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return self._inside().respond(x + 0.02 * torch.randn(x.shape, generator=rng), rng)


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_a_stochastic_system_is_fooled_in_the_mean(attack, norm):
    data = TEST.rows(torch.arange(24))
    found, target = attacked(attack, norm, system=Shaky(), data=data)
    least, far = closest_possible(data, norm), distance(found, data.x, norm)
    clear = least > {"linf": 0.02, "l2": 0.16, "l1": 1.3, "l0": 4}[norm]
    assert (far[clear] > 0).all()
    assert (far[clear] < least[clear] * 1.25 + (norm == "l0")).all()
    assert (target.gradients % 8 == 0).all()


class Refusing(System):
    """Refuses what lies near the boundary, and errs beyond it."""

    BAND = 0.02

    def __init__(self) -> None:
        super().__init__(TASK.best())

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(self._inside().respond(x, rng).logits, (x.flatten(1).mean(1) - 0.5).abs() - self.BAND)


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_being_wrong_and_refused_is_no_success(attack, norm):
    data = TEST.rows(signed(TEST) > 64 * 0.03)
    found, _ = attacked(attack, norm, system=Refusing(), data=data)
    moved = distance(found, data.x, norm) > 0
    said = answers(Refusing(), found)
    assert moved.float().mean() > 0.9
    assert ((said != data.y) & (said != REFUSED))[moved].all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_crossing_gets_there_and_nothing_shorter_does(norm):
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(200, 4, generator=generator)
    low, high = -torch.rand(200, 4, generator=generator), torch.rand(200, 4, generator=generator)
    gap = torch.randn(200, generator=generator)
    step = crossing(gradient, gap, low, high, norm)
    assert ((step >= low) & (step <= high)).all()
    most = (gradient.abs() * torch.where(gradient * gap[:, None] > 0, high, -low)).sum(1)
    rise = (gradient * step).sum(1)
    torch.testing.assert_close(rise, gap.sign() * torch.minimum(gap.abs(), most), rtol=1e-4, atol=1e-5)
    for _ in range(200):  # other points of the box that rise as much are no shorter
        other = low + torch.rand(200, 4, generator=generator) * (high - low)
        as_far = (gradient * other).sum(1) * gap.sign() >= rise.abs()
        assert (distance(other, 0 * other, norm) >= distance(step, 0 * step, norm) - 1e-5)[as_far].all()


def test_the_log_odds_have_the_direction_of_the_cross_entropy():
    logits = torch.randn(
        6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    (odds,) = torch.autograd.grad(log_odds(logits, y).sum(), logits)
    (entropy,) = torch.autograd.grad(cross_entropies(logits, y).sum(), logits)
    torch.testing.assert_close(nn.functional.normalize(odds), nn.functional.normalize(entropy))
    torch.testing.assert_close(nn.functional.softplus(log_odds(logits, y)), cross_entropies(logits, y))

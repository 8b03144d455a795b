"""Evasion attacks against mathematics: what can be broken on the oracle, is, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from firstline.attacks.evasion.fgsm import FGSM
from firstline.attacks.evasion.pgd import PGD
from firstline.attacks.evasion.uniform_noise import UniformNoise
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Evasion, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import BudgetExhausted
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train

TASK = Blobs(train=256, test=2048)
TEST = TASK.load(None).test
BALLS = [("linf", 0.02), ("linf", 0.05), ("l2", 0.2), ("l2", 0.4)]


def attacked(
    attack: Evasion,
    goal: str,
    eps: float,
    *,
    system: System | None = None,
    data: Data = TEST,
    knowledge: str = "white",
    more: str = "",
    batch: int = 4096,
) -> tuple[Tensor, Target]:
    threat = Threat.parse(f"evasion/{knowledge}/{goal}:{eps}{more}")
    target = Target(
        system or TASK.best(),
        threat,
        space=TASK.space,
        classes=2,
        rng=Streams(0),
        examples=len(data),
        batch=batch,
    )
    region = Region(data.x.clone(), TASK.space, goal, eps)
    return attack.perturb(target, data.x.clone(), data.y.clone(), region, Streams(7)), target


def wrong(x: Tensor, data: Data = TEST, system: System | None = None) -> Tensor:
    return (system or TASK.best()).respond(x, torch.Generator()).labels != data.y


@pytest.fixture(scope="module")
def network() -> System:
    """A small network, so that the loss has more than one slope."""
    module = initialise(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)), Streams(0)
    )
    return (
        Bare(train(module, TASK.load(None).train, Recipe(5, 32, 1e-2), Streams(0)))
        .eval()
        .requires_grad_(False)
    )


@pytest.mark.parametrize(("goal", "eps"), BALLS)
@pytest.mark.parametrize("attack", [PGD(), PGD(random_start=False), FGSM()], ids=str)
def test_a_gradient_attack_breaks_exactly_what_mathematics_says(attack, goal, eps):
    found, _ = attacked(attack, goal, eps)
    broken = wrong(found)
    assert torch.equal(broken, TASK.broken(TEST.x, TEST.y, goal, eps))
    kept = 1 - float(broken.float().mean())
    assert kept == pytest.approx(TASK.best_robust_accuracy(goal, eps), abs=0.03)


def test_fgsm_takes_one_step_along_the_sign_of_the_gradient():
    found, target = attacked(FGSM(), "linf", 0.04)
    right = ~wrong(TEST.x)
    away = -(2 * TEST.y - 1).reshape(-1, 1, 1, 1)
    assert torch.equal(found[right], (TEST.x + 0.04 * away).clamp(0, 1)[right])
    assert torch.equal(found[~right], TEST.x[~right])
    assert target.gradients.tolist() == [1] * len(TEST)
    assert int(target.queries.sum()) == 0


def test_success_is_any_iterate_and_not_only_the_last():
    class Window(System):
        """Errs only where the mean pixel is between two limits: an ascent passes through and out again."""

        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            mean = x.flatten(1).mean(1)
            inside = ((mean > 0.52) & (mean < 0.54)).float() * 2 - 1
            return Response(torch.stack([mean, mean + inside * 0.5 + 100 * (mean - mean.detach())], 1))

    data = Data.of(torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64))
    found, target = attacked(PGD(steps=20, random_start=False), "linf", 0.1, system=Window(), data=data)
    assert wrong(found, data, Window()).all()
    torch.testing.assert_close(found, data.x + 0.03)  # the third step of 0.01
    assert target.gradients.tolist() == [4] * 4


def test_more_restarts_break_what_fewer_broke_and_more(network):
    results = [
        attacked(PGD(steps=2, stride=0.3, restarts=k), "linf", 0.04, system=network)[0] for k in (1, 4)
    ]
    few, many = (wrong(found, system=network) for found in results)
    assert (many | ~few).all()
    assert int(many.sum()) > int(few.sum())


def test_more_steps_break_more(network):
    results = [attacked(PGD(steps=k, stride=0.2), "linf", 0.04, system=network)[0] for k in (1, 20)]
    few, many = (int(wrong(found, system=network).sum()) for found in results)
    assert many > few


def test_only_what_still_stands_is_attacked_and_counted(network):
    _, target = attacked(PGD(steps=5, restarts=3, random_start=False), "linf", 0.04, system=network)
    broken_when_clean = wrong(TEST.x, system=network)
    assert broken_when_clean.any()
    assert (target.gradients[broken_when_clean] == 1).all()
    assert (target.queries[broken_when_clean] == 1).all()
    never = target.gradients == 15
    assert never.any()
    assert (target.queries[never] == 2).all()  # asked after each restart but the last


def test_a_random_start_is_what_makes_restarts_differ(network):
    (once, _), (thrice, _) = (
        attacked(PGD(steps=3, restarts=k, random_start=False), "linf", 0.04, system=network) for k in (1, 3)
    )
    assert torch.equal(wrong(once, system=network), wrong(thrice, system=network))


class Refusing(System):
    """Refuses what lies near the boundary, and errs beyond it."""

    def __init__(self) -> None:
        super().__init__(TASK.best())

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(self._inside().respond(x, rng).logits, (x.flatten(1).mean(1) - 0.5).abs() - 0.01)


@pytest.mark.parametrize(
    ("attack", "asked", "gradients"),
    [(PGD(steps=5, restarts=2), 1, 10), (UniformNoise(draws=3), 3, 0)],
    ids=str,
)
def test_being_refused_is_no_success_and_the_attack_goes_on(attack, asked, gradients):
    found, target = attacked(attack, "linf", 0.05, system=Refusing())
    refused = Refusing().respond(found, torch.Generator()).labels == -1
    assert refused.any()
    assert (target.queries[refused] == asked).all()
    assert (target.gradients[refused] == gradients).all()


@pytest.mark.parametrize("attack", [PGD(steps=5), FGSM(), UniformNoise()], ids=str)
@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_size_changes_nothing(attack, batch):
    few = TEST.rows(torch.arange(40))
    whole, meter = attacked(attack, "linf", 0.04, data=few)
    parts, other = attacked(attack, "linf", 0.04, data=few, batch=batch)
    torch.testing.assert_close(whole, parts)
    assert torch.equal(meter.queries, other.queries)
    assert torch.equal(meter.gradients, other.gradients)


@pytest.mark.parametrize(("goal", "eps"), BALLS)
def test_noise_never_breaks_what_can_not_be_broken(goal, eps):
    found, _ = attacked(UniformNoise(), goal, eps)
    broken = wrong(found)
    assert not (broken & ~TASK.broken(TEST.x, TEST.y, goal, eps)).any()
    assert (broken | ~wrong(TEST.x)).float().mean() > 0.99  # what is far on the wrong side stays there


def test_noise_stops_at_the_first_draw_that_is_answered_wrongly():
    found, target = attacked(UniformNoise(draws=6), "linf", 0.06, knowledge="black", more=",answers=labels")
    broken = wrong(found)
    assert (target.queries[~broken] == 6).all()
    assert (target.queries[broken] < 6).any()
    assert int(target.queries.max()) == 6
    assert int(target.gradients.sum()) == 0


def test_noise_keeps_to_its_budget_or_says_so():
    few = TEST.rows(torch.arange(8))
    attacked(UniformNoise(draws=6), "linf", 0.01, data=few, knowledge="black", more=",queries=6")
    with pytest.raises(BudgetExhausted, match="grants 5 queries per example"):
        attacked(UniformNoise(draws=6), "linf", 0.01, data=few, knowledge="black", more=",queries=5")


def test_examples_meet_the_same_starts_whatever_the_system():
    met: list[Tensor] = []

    def spy(logits: Callable[[Tensor], Tensor]) -> System:
        class Spy(System):
            def respond(self, x: Tensor, rng: torch.Generator) -> Response:
                met.append(x.detach().clone())
                return Response(logits(x))

        return Spy()

    few = TEST.rows(torch.arange(8))
    for sign in (1.0, -1.0):
        slope = spy(lambda x, sign=sign: sign * torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1))
        attacked(PGD(steps=1), "linf", 0.05, system=slope, data=few)
    assert torch.equal(met[0], met[1])

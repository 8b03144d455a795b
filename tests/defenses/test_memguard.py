"""MemGuard: noise that ends just beyond the classifier's boundary, keeps the class and the budget."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Architecture, Context
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.training import Recipe
from firstline.defenses.memguard import SECRET, WEIGHTS, Guarded, MemberClassifier, MemGuard

CPU = torch.device("cpu")
LINE = 0.7


class SureIsMember(nn.Module):
    """Takes those answers for members' whose largest probability is above 0.7."""

    def forward(self, shares: Tensor) -> Tensor:
        return 10 * (shares.amax(1) - LINE)


def guarded(budget: float = 1.0, secret: int = 0, classifier: nn.Module | None = None) -> Guarded:
    """MemGuard around a system that takes its inputs for its logits."""
    system = Guarded(Bare(nn.Identity()), classifier or SureIsMember(), budget, 300)
    system.secret.copy_(torch.full((SECRET,), secret, dtype=torch.uint8))
    return system.eval()


def told(system: System, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.softmax(system.respond(x, torch.Generator()).logits.double(), 1)


def drawn(n: int, classes: int = 5) -> Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(classes))


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_the_noise_ends_just_beyond_the_boundary_and_keeps_the_class(classes):
    x = drawn(30, classes)
    shares = torch.softmax(x.double(), 1)
    noisy = guarded().noisy(shares)
    before, after = shares.amax(1), noisy.amax(1)
    assert torch.equal(noisy.argmax(1), x.argmax(1))
    torch.testing.assert_close(noisy.sum(1), torch.ones(30, dtype=torch.float64))
    assert torch.equal(before > LINE, after <= LINE)  # every row goes to the other side
    # A step of 0.1 in the logits moves a probability by 0.1 sqrt(2) p (1 - p) at the most: here by 0.031.
    assert (after - LINE).abs().max() < 0.031


def test_the_noise_is_the_smallest_that_the_search_knows():
    # Of two classes the distance to the boundary is known: twice what the probability is off.
    shares = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    spent = (guarded().noisy(shares) - shares).abs().sum(1)
    least = torch.tensor([0.4, 0.2, 0.2], dtype=torch.float64)
    assert (spent >= least - 1e-9).all()
    assert (spent < least + 2 * 0.031).all()


class Wavering(System):
    """Takes its inputs for its logits, with an error that grows with the batch."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(x + 1e-3 * len(x) * torch.arange(x.shape[1]), x[:, 0])


def test_the_errors_of_a_batch_do_not_reach_the_search():
    x = drawn(4)
    system = Guarded(Wavering(), SureIsMember(), 2.0, 300)
    whole = system.respond(x, torch.Generator())
    single = [system.respond(row, torch.Generator()) for row in x.split(1)]
    torch.testing.assert_close(whole.logits, torch.cat([answer.logits for answer in single]))
    assert torch.equal(whole.acceptance, x[:, 0])


class FirstClass(nn.Module):
    """Takes those answers for members' that give the first class more than 0.42."""

    def forward(self, shares: Tensor) -> Tensor:
        return 10 * (shares[:, 0] - 0.42)


def test_the_search_goes_around_another_class_and_stops_where_there_is_no_way():
    shares = torch.tensor([[0.5, 0.45, 0.05]], dtype=torch.float64)
    around = guarded(classifier=FirstClass()).noisy(shares)
    assert int(around.argmax(1)) == 0
    assert 0.38 < float(around[0, 0]) <= 0.42
    shut = torch.tensor([[0.6, 0.4]], dtype=torch.float64)  # 0.42 is less than the other class has then
    assert torch.equal(guarded(classifier=FirstClass()).noisy(shut), shut)


class Peaked(nn.Module):
    """Takes those answers for members' whose squares add up to more than one half."""

    def forward(self, shares: Tensor) -> Tensor:
        return 10 * (shares.square().sum(1) - 0.5)


def test_larger_weights_of_the_distortion_save_some():
    shares, system = torch.softmax(drawn(10).double(), 1), guarded(classifier=Peaked())
    ends, reached = system._search(shares.log(), shares, WEIGHTS[0])
    assert reached.all()
    least, first = ((told - shares).abs().sum() for told in (system.noisy(shares), torch.softmax(ends, 1)))
    assert least < first - 0.05


def test_an_answer_that_the_classifier_cannot_judge_is_told_as_it_is():
    shares = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    assert torch.equal(guarded().noisy(shares), shares)


def test_where_no_noise_turns_the_classifier_nothing_is_added():
    class Stubborn(nn.Module):
        def forward(self, shares: Tensor) -> Tensor:
            return 1 + shares[:, 0]

    x = drawn(5)
    torch.testing.assert_close(told(guarded(classifier=Stubborn()), x), torch.softmax(x.double(), 1))


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.5, 2.0])
def test_the_expected_distortion_is_the_budget_or_all_that_the_noise_takes(budget):
    system, shares = guarded(budget), torch.softmax(drawn(100).double(), 1)
    noisy = system.noisy(shares)
    distance = (noisy - shares).abs().sum(1)
    closer = (noisy.amax(1) - LINE).abs() < (shares.amax(1) - LINE).abs()
    expected = torch.where(closer, distance.clamp_max(budget), 0)
    torch.testing.assert_close(system.chance(shares, noisy) * distance, expected)


def test_the_coins_are_fair_and_keep_the_budget():
    x, budget = drawn(3), 0.05
    shares = torch.softmax(x.double(), 1)
    spent = torch.zeros(3, dtype=torch.float64)
    noisy = guarded().noisy(shares)
    for secret in range(250):
        system = guarded(budget, secret)
        system.noisy = lambda shares: noisy
        spent += (told(system, x) - shares).abs().sum(1) / 250
    expected = guarded(budget).chance(shares, noisy) * (noisy - shares).abs().sum(1)
    torch.testing.assert_close(spent, expected, atol=0.03, rtol=0)
    uniform = guarded().coins(torch.arange(4000.0)[:, None]).sort().values
    assert (uniform - torch.linspace(0, 1, 4000, dtype=torch.float64)).abs().max() < 0.03


def test_the_same_input_gets_the_same_answer_and_the_secret_decides_which():
    x = drawn(12)
    once = told(guarded(0.2), x)
    assert torch.equal(once, told(guarded(0.2), x))
    alone = torch.cat([told(guarded(0.2), row) for row in x[:4].split(1)])
    torch.testing.assert_close(once[:4], alone)
    assert not torch.equal(once, told(guarded(0.2, secret=1), x))


def test_the_classifier_does_not_see_which_class_is_which():
    classifier, shares = MemberClassifier(5), torch.softmax(drawn(20), 1)
    torch.testing.assert_close(classifier(shares), classifier(shares.flip(1)))


class Prototypes(Blobs):
    """Ten classes, each a pattern of bits of which a third are flipped: learned by heart, and half of it in vain."""

    classes = 10

    def sample(self, n: int, name: str) -> Data:
        rng = Streams(0)
        patterns = torch.rand(10, 1, 8, 8, generator=rng.torch("patterns")) < 0.5
        y = torch.randint(10, (n,), generator=rng.torch("y", name))
        flipped = torch.rand(n, 1, 8, 8, generator=rng.torch("x", name)) < 0.35
        return Data.of((patterns[y] ^ flipped).float(), y)

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        def build() -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))

        return {"mlp": Architecture(build, Recipe(epochs=60, batch=32, rate=1e-2))}


def test_the_defenders_own_classifier_knows_members_and_is_wrong_about_what_is_told():
    task = Prototypes(train=200, test=200)
    splits = task.load(None)
    defense = MemGuard(budget=2.0)
    system = Stack((defense,)).fit(task, splits.train, Streams(0), CPU).system
    assert isinstance(system, Guarded)

    def right(asked: System) -> float:
        inside = [system.classifier(told(asked, part.x[:60])) > 0 for part in (splits.train, splits.test)]
        return float(inside[0].double().mean() + (~inside[1]).double().mean()) / 2

    assert right(system.inner) > 0.75
    assert right(system) < 0.3  # turned around: what is told lies just beyond the boundary


def test_calibration_leaves_the_system_inside_as_it_was():
    task = Blobs(train=64)
    train = task.load(None).train
    inner = Bare(task.default.build()).eval()
    before = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    defense = MemGuard(epochs=1)
    system = defense.deploy(inner, task)
    with torch.no_grad():
        defense.calibrate(system, train, Context(task, Streams(0), CPU))
    assert all(torch.equal(before[name], tensor) for name, tensor in inner.state_dict().items())
    assert len(system.get_buffer("secret").unique()) > 10


@pytest.mark.parametrize("defense", [MemGuard(budget=-1.0), MemGuard(steps=0), MemGuard(epochs=0)], ids=str)
def test_settings_that_mean_nothing_are_refused(defense):
    with pytest.raises(FirstlineError, match="budget must be at least 0, steps and epochs at least 1"):
        defense.deploy(Bare(nn.Identity()), Blobs())

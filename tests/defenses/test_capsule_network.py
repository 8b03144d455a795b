"""The capsule network: the paper's squashing, routing and loss, step by step, and that attacks find their way."""

import numpy as np
import pytest
import torch
from torch import Tensor

from firstline.attacks.evasion.pgd import PGD
from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.capsule_network import SCALE, CapsuleNetwork, Capsules, margin_loss, routed, squash
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

TASK = Digits()
SPLITS = TASK.load(None)
TEST = SPLITS.test.rows(torch.arange(150))


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("length", "expected"), [(1.0, 0.5), (3.0, 0.9), (0.1, 0.01 / 1.01), (1e6, 1.0)])
def test_squashing_keeps_the_direction_and_shortens(length, expected):
    direction = torch.tensor([0.6, -0.8])
    torch.testing.assert_close(squash(length * direction), expected * direction)


def test_nothing_squashed_is_nothing_and_has_a_gradient():
    s = torch.zeros(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(squash(s).sum(), s)
    assert not squash(s).any()
    assert torch.isfinite(gradient).all()


def naive_routing(votes: Tensor, routings: int) -> np.ndarray:
    """Procedure 1, capsule by capsule, for one example."""
    u = votes.double().numpy()
    inner, outer, _ = u.shape
    b = np.zeros((inner, outer))
    for _ in range(routings):
        c = np.exp(b) / np.exp(b).sum(1, keepdims=True)
        v = []
        for j in range(outer):
            s = sum(c[i, j] * u[i, j] for i in range(inner))
            square = float(s @ s)
            v.append(square / (1 + square) * s / np.sqrt(square))
        for i in range(inner):
            for j in range(outer):
                b[i, j] += u[i, j] @ v[j]
    return np.array(v)


@pytest.mark.parametrize("routings", [1, 2, 3, 5])
def test_routing_is_that_of_the_paper(routings):
    votes = torch.randn(2, 5, 3, 4, generator=chance())
    expected = np.stack([naive_routing(example, routings) for example in votes])
    np.testing.assert_allclose(routed(votes, routings).numpy(), expected, atol=1e-5)


def test_capsules_that_agree_win_the_votes_of_the_others():
    votes = torch.zeros(1, 4, 2, 3)
    votes[0, :, 0, 0] = 1.0  # all say the same of the first
    votes[0, :, 1, 1] = torch.tensor([1.0, -1.0, 1.0, -1.0])  # and contradict each other on the second
    lengths = [routed(votes, rounds).norm(dim=2)[0] for rounds in (1, 3)]
    assert lengths[1][0] > lengths[0][0] + 0.05
    assert lengths[1][1] < 0.2


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([0.9, 0.1, 0.1], 0.0),
        ([0.95, 0.0, 0.05], 0.0),
        ([0.4, 0.1, 0.1], 0.25),
        ([0.9, 0.7, 0.1], 0.5 * 0.36),
        ([0.0, 1.0, 1.0], 0.81 + 0.5 * 2 * 0.81),
    ],
)
def test_the_margin_loss_is_that_of_the_paper(lengths, expected):
    found = margin_loss(torch.tensor([lengths]), torch.tensor([0]))
    assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "kinds", "inner"), [((1, 28, 28), 32, 1152), ((3, 32, 32), 2, 128), ((1, 8, 8), 8, 32)]
)
def test_there_are_as_many_capsules_as_the_layers_leave(shape, kinds, inner):
    network = Capsules(shape, 10, 4, kinds, 3)
    assert network.weight.shape == (inner, 10, 16, 8)  # 6x6x32 of 8 numbers on MNIST, as in the paper
    assert network(torch.rand(2, *shape, generator=chance())).shape == (2, 10)


def test_a_primary_capsule_holds_numbers_of_one_place():
    network = initialise(lambda: Capsules((1, 8, 8), 2, 3, 2, 1), Streams(0))
    seen: list[Tensor] = []
    hook = network.primary.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.rand(1, 1, 8, 8, generator=chance())
    found = network(x)
    hook.remove()
    maps = seen[0][0]  # (16, 2, 2)
    inner = torch.stack(
        [squash(maps[8 * k : 8 * k + 8, i, j]) for k in range(2) for i in range(2) for j in range(2)]
    )
    votes = torch.stack(
        [
            torch.stack([network.weight[i, c] @ inner[i] for c in range(2)])
            for i in range(len(inner))
        ]
    )  # fmt: skip
    torch.testing.assert_close(found[0] / SCALE, routed(votes[None], 1)[0].norm(dim=1))


@pytest.fixture(scope="module")
def trained() -> System:
    defense = CapsuleNetwork(channels=32, kinds=4)
    return Stack((defense,)).fit(TASK, SPLITS.train, Streams(0), torch.device("cpu")).system


def test_logits_are_lengths_and_the_longest_capsule_is_the_answer(trained):
    logits = trained.respond(TEST.x, chance()).logits
    assert float(logits.min()) >= 0
    assert float(logits.max()) < SCALE
    assert float((logits.argmax(1) == TEST.y).float().mean()) > 0.93
    own = logits.gather(1, TEST.y[:, None]) / SCALE
    assert float(own.median()) == pytest.approx(0.9, abs=0.08)  # where the loss lets it rest


def test_it_gives_gradients_that_lead_to_errors(trained):
    eps = 2 * TASK.eps["linf"]
    threat = Threat.parse(f"evasion/white/linf:{eps}")
    door = Target(trained, threat, space=TASK.space, classes=10, rng=Streams(0), examples=len(TEST))
    region = Region(TEST.x.clone(), TASK.space, "linf", eps)
    start = region.snap(region.random(chance()))
    found = PGD(loss="margin", steps=20, stride=0.2).perturb(
        door, TEST.x.clone(), TEST.y.clone(), region, Streams(1)
    )
    stand = [float((trained.respond(x, chance()).labels == TEST.y).float().mean()) for x in (start, found)]
    assert stand[0] > 0.6  # noise of that size is no attack
    assert stand[1] < 0.15


def test_only_images_have_capsules():
    with pytest.raises(
        FirstlineError, match=r"takes images .* the inputs of breast-cancer have shape \(30,\)"
    ):
        CapsuleNetwork().build(BreastCancer())


@pytest.mark.parametrize("settings", [{"channels": 0}, {"kinds": 0}, {"routings": 0}])
def test_settings_that_make_no_capsules_are_refused(settings):
    with pytest.raises(FirstlineError, match="must be at least 1"):
        CapsuleNetwork(**settings).build(TASK)


def test_weights_come_from_the_seed_of_the_fit_alone():
    first, second = (initialise(lambda: CapsuleNetwork().build(TASK), Streams(0)) for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)

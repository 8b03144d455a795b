"""PGD against the slow and obvious one, and against other libraries where they are installed."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.attacks.evasion.pgd import PGD
from firstline.benchmark.core.ascent import Slope, ascend, module_slope
from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.tasks.networks import lenet5
from firstline.tasks.vision import Mnist

Digits = tuple[System, Data]


def attacked(
    attack: PGD, system: System, data: Data, goal: str, eps: float, *, classes: int = 10, more: str = ""
) -> tuple[Tensor, Target]:
    space = InputSpace(tuple(data.x.shape[1:]))
    threat = Threat.parse(f"evasion/white/{goal}:{eps}{more}")
    target = Target(system, threat, space=space, classes=classes, rng=Streams(0), examples=len(data))
    return attack.perturb(target, data.x, data.y, Region(data.x, space, goal, eps), Streams(1)), target


def right(system: System, x: Tensor, data: Data) -> Tensor:
    return system.respond(x, torch.Generator()).labels == data.y


def network() -> System:
    """Four classes in five dimensions, at random, with a bend here and there."""
    module = initialise(lambda: nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4)), Streams(3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
        module[-1].bias -= module(torch.full((1, 5), 0.5))[0]
    return Bare(module).eval().requires_grad_(False)


def examples(system: System, n: int = 24) -> Data:
    """Return points that the network gets right."""
    x = torch.rand(n, 5, generator=torch.Generator().manual_seed(1))
    return Data.of(x, system.respond(x, torch.Generator()).labels)


def slow_pgd(system: System, x: Tensor, y: int, eps: float, attack: PGD) -> Tensor:
    """One example (1, d) in an linf ball, without a random start, as the papers have it."""
    point, velocity = x, torch.zeros_like(x)
    for restart in range(attack.restarts):
        point, velocity, aim = x, torch.zeros_like(x), (y + 1 + restart) % 4
        for _ in range(attack.steps):
            leaf = point.clone().requires_grad_()
            z = system.respond(leaf, torch.Generator()).logits[0]
            if int(z.argmax()) != y:
                return point
            others = torch.cat([z[:y], z[y + 1 :]])
            top = z.sort(descending=True).values
            if attack.loss == "ce":
                loss = z.log_softmax(0)[aim] if attack.targeted else -z.log_softmax(0)[y]
            else:
                loss = (z[aim] if attack.targeted else others.max()) - z[y]
                if attack.loss == "dlr":
                    loss = loss / (top[0] - ((top[2] + top[3]) / 2 if attack.targeted else top[2]))
            (gradient,) = torch.autograd.grad(loss, leaf)
            velocity = attack.momentum * velocity + gradient / gradient.norm(p=1)
            point = point + attack.stride * eps * velocity.sign()
            point = torch.max(torch.min(point, x + eps), x - eps).clamp(0, 1)
        if int(system.respond(point, torch.Generator()).labels) != y:
            return point
    return point


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_setting_is_the_slow_and_obvious_loop(loss, targeted, momentum):
    system = network()
    data = examples(system)
    restarts = 3 if targeted else 1
    attack = PGD(8, 0.2, restarts, random_start=False, loss=loss, momentum=momentum, targeted=targeted)
    found, _ = attacked(attack, system, data, "linf", 0.08, classes=4)
    slow = [slow_pgd(system, data.x[i : i + 1], int(data.y[i]), 0.08, attack) for i in range(len(data))]
    torch.testing.assert_close(found, torch.cat(slow), atol=1e-6, rtol=0)
    assert 0 < float(right(system, found, data).float().mean()) < 1  # both ways of ending were met


def test_momentum_and_loss_change_the_course():
    system = network()
    data = examples(system)
    settings = [{}, {"momentum": 1.0}, {"loss": "margin"}, {"targeted": True}]
    found = [
        attacked(PGD(6, 0.3, random_start=False, **s), system, data, "linf", 0.1, classes=4)[0]
        for s in settings
    ]
    assert all(not torch.equal(found[0], other) for other in found[1:])


def test_an_unknown_loss_is_told_with_those_there_are():
    system = network()
    with pytest.raises(FirstlineError, match="margin"):
        attacked(PGD(loss="margn"), system, examples(system), "linf", 0.1, classes=4)


@pytest.mark.parametrize(("queries", "gradients"), [(0, 4), (1, 8), (5, 12)])
def test_restarts_end_where_the_queries_do(queries, gradients):
    system = network()
    attack = PGD(steps=4, restarts=3)
    _, target = attacked(
        attack, system, examples(system), "linf", 1e-3, classes=4, more=f",queries={queries}"
    )
    assert target.gradients.unique().tolist() == [gradients]
    assert int(target.queries.max()) <= queries


# Other libraries judge the last iterate, and ours every one: on the examples that hold, the iterates coincide.
DETERMINISTIC = PGD(random_start=False)
EPS = 0.1


def foolbox(system: System, data: Data) -> Tensor:
    library = pytest.importorskip("foolbox")
    model = library.PyTorchModel(system.module, bounds=(0, 1))
    attack = library.attacks.LinfBasicIterativeAttack(abs_stepsize=0.1 * EPS, steps=40, random_start=False)
    return attack.run(model, data.x, library.criteria.Misclassification(data.y), epsilon=EPS)


def art(system: System, data: Data) -> Tensor:
    estimators = pytest.importorskip("art.estimators.classification")
    evasion = pytest.importorskip("art.attacks.evasion")
    classifier = estimators.PyTorchClassifier(
        system.module,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    attack = evasion.ProjectedGradientDescent(
        classifier,
        eps=EPS,
        eps_step=0.1 * EPS,
        max_iter=40,
        num_random_init=0,
        batch_size=200,
        verbose=False,
    )
    return torch.from_numpy(attack.generate(data.x.numpy(), data.y.numpy()))


def torchattacks(system: System, data: Data) -> Tensor:
    library = pytest.importorskip("torchattacks")
    return library.PGD(system.module, eps=EPS, alpha=0.1 * EPS, steps=40, random_start=False)(data.x, data.y)


def hand_written(system: System, data: Data) -> Tensor:
    point = data.x
    for _ in range(40):
        leaf = point.clone().requires_grad_()
        loss = cross_entropy(system.respond(leaf, torch.Generator()).logits, data.y)
        (gradient,) = torch.autograd.grad(loss, leaf)
        point = point + 0.1 * EPS * gradient.sign()
        point = torch.max(torch.min(point, data.x + EPS), data.x - EPS).clamp(0, 1)
    return point


@pytest.mark.parametrize("peer", [hand_written, foolbox, art, torchattacks])
def test_without_a_random_start_the_figure_is_that_of_other_libraries(digits: Digits, peer):
    system, data = digits
    theirs = peer(system, data)
    found, _ = attacked(DETERMINISTIC, system, data, "linf", EPS)
    ours_holds, theirs_holds = right(system, found, data), right(system, theirs, data)
    assert 0.1 < float(ours_holds.float().mean()) < 0.9
    assert torch.equal(ours_holds, theirs_holds)
    torch.testing.assert_close(found[ours_holds], theirs[ours_holds], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_last_iterate_is_the_published_one():
    """advertorch's adversarially trained LeNet5, PGD-40 in linf 0.3 without a random start: 9,325 of 10,000 hold."""
    data, weights = os.environ.get("FIRSTLINE_DATA"), os.environ.get("FIRSTLINE_WEIGHTS")
    if not data or not weights:
        pytest.skip("FIRSTLINE_DATA and FIRSTLINE_WEIGHTS say where MNIST and the published weights are")
    test, module = Mnist(grid=False).load(Path(data)).test, lenet5()
    found = torch.load(Path(weights) / "mnist_lenet5_advtrained.pt", map_location="cpu")
    module.load_state_dict(dict(zip(module.state_dict(), found.values(), strict=True)))
    module.eval().requires_grad_(False)
    holds = 0
    for rows in torch.arange(len(test)).split(250):
        part = test.rows(rows)
        region = Region(part.x, InputSpace((1, 28, 28)), "linf", 0.3)

        def climb(points: Tensor, local: Tensor, y: Tensor = part.y) -> Slope:
            return module_slope(module, points, y[local])  # without a verdict: nobody leaves

        last = ascend(climb, region, start=part.x, steps=40, stride=1 / 30)
        holds += int((module(last).argmax(1) == part.y).sum())
    assert holds == 9325

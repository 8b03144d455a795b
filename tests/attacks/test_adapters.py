"""Adapters: other libraries' attacks keep our rules, and stay what they are there."""

import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from firstline.attacks.adapters import art, autoattack, foolbox, peer, torchattacks  # noqa: F401 - registered
from firstline.attacks.evasion.pgd import PGD
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import packages
from firstline.benchmark.core.contracts import Evasion, MinimalNorm
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import BudgetExhausted, FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import registered
from firstline.benchmark.core.rng import Streams, isolated
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.none import NoDefense
from firstline.tasks.digits import Digits

TASK = Blobs()
TEST = TASK.load(None).test.rows(torch.arange(48))
PEERS = {name: cls for (_, name), cls in sorted(registered().items()) if "peer" in cls.tags}
EPS = {"linf": 0.03, "l2": 0.3, "l1": 2.0, "l0": 8.0}


def attacked(
    attack: Evasion,
    goal: str = "linf",
    eps: float | Tensor = 0.03,
    *,
    data: Data = TEST,
    system: System | None = None,
    space: InputSpace = TASK.space,
    classes: int = 2,
    knowledge: str = "white",
    more: str = "",
    seed: int = 0,
) -> tuple[Tensor, Target]:
    threat = Threat.parse(f"evasion/{knowledge}/{goal}:{float(torch.as_tensor(eps).max())}{more}")
    system = system or TASK.best()
    target = Target(system, threat, space=space, classes=classes, rng=Streams(0), examples=len(data))
    region = Region(data.x.clone(), space, goal, eps)
    return attack.perturb(target, data.x.clone(), data.y.clone(), region, Streams(seed)), target


def right(x: Tensor, data: Data = TEST, system: System | None = None) -> Tensor:
    return (system or TASK.best()).respond(x, torch.Generator()).labels == data.y


# A library of our own, so that the rules are tested where no other is installed.


class Borrowed(peer.Peer):
    """An attack whose library is whatever function a test puts there."""

    library = peer.Library("borrowed", "borrowed", "Borrowed", "pip install borrowed")

    def craft(self, library: ModuleType, model: nn.Module, x: Tensor, call: peer.Call) -> Tensor:
        return library.attack(model, x, call)


@pytest.fixture
def borrow(monkeypatch):
    """Return a function that installs a library with one function, and returns the attack that calls it."""
    monkeypatch.setattr(packages, "find_spec", lambda name: object())
    made: list[type[Evasion]] = []
    monkeypatch.setattr(peer, "attack", lambda name, tags: made.append)

    def install(function, goals=("linf", "l2"), **more) -> Evasion:
        library = ModuleType("borrowed")
        library.attack = function
        monkeypatch.setitem(sys.modules, "borrowed", library)
        peer.adapt(Borrowed, [peer.Row("one", "One", goals, "Something", **more)])
        return made[-1]()

    return install


def climb(model: nn.Module, x: Tensor, call: peer.Call) -> Tensor:
    """One step along the sign of the gradient, as other libraries write it."""
    x = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), call.y).backward()
    return (x + call.eps * x.grad.sign()).clamp(0, 1)


def test_a_forward_costs_what_it_gives(borrow):
    def ask(model, x, call):
        model(x)  # a query: no gradient is on
        logits = model(x.requires_grad_())  # a gradient
        logits[:, 0].sum().backward(retain_graph=True)  # which pays for this
        logits[:, 1].sum().backward()  # another way back, another gradient
        with torch.no_grad():
            model(x)
        return x

    _, target = attacked(borrow(ask))
    assert target.queries.tolist() == [2] * 48
    assert target.gradients.tolist() == [2] * 48


@pytest.mark.parametrize(("sizes", "spent"), [((2,), 2), ((7, 3), 10), ((1,) * 8, 8)])
def test_a_batch_of_another_size_is_shared_out_evenly_to_the_last_query(borrow, sizes, spent):
    def ask(model, x, call):
        for size in sizes:
            model(x[:1].expand(size, *x.shape[1:]))
        return x

    _, target = attacked(borrow(ask, batch=4), data=TEST.rows(torch.arange(4)))
    assert int(target.queries.sum()) == spent
    assert int(target.queries.max() - target.queries.min()) <= 1


@pytest.mark.parametrize("batch", [1, 5, 48])
def test_a_library_sees_a_chunk_at_a_time(borrow, batch):
    seen: list[int] = []

    def step(model, x, call):
        seen.append(len(x))
        return climb(model, x, call)

    found, target = attacked(borrow(step, batch=batch))
    assert sum(seen) == 48
    assert max(seen) == batch
    assert target.gradients.tolist() == [1] * 48
    assert torch.equal(~right(found), TASK.broken(TEST.x, TEST.y, "linf", 0.03))


def test_each_radius_is_attacked_by_itself(borrow):
    seen: list[tuple[int, float]] = []

    def step(model, x, call):
        seen.append((len(x), round(call.eps, 3)))
        return climb(model, x, call)

    eps = torch.tensor([0.0, 0.01, 0.03]).repeat(16)
    found, target = attacked(borrow(step), eps=eps)
    assert seen == [(16, 0.01), (16, 0.03)]
    far = (found - TEST.x).abs().flatten(1).amax(1)
    torch.testing.assert_close(far, eps)
    assert torch.equal(found[::3], TEST.x[::3])
    assert target.gradients.tolist() == [0, 1, 1] * 16


def test_points_are_brought_into_the_ball_and_what_is_no_number_is_left_out(borrow):
    def wild(model, x, call):
        x = x + 5
        x[::2] = float("nan")
        return x

    found, _ = attacked(borrow(wild))
    assert torch.equal(found[::2], TEST.x[::2])
    torch.testing.assert_close(found[1::2], (TEST.x[1::2] + 0.03).clamp(max=1))


def test_a_library_that_crashes_is_no_robustness(borrow):
    def crash(model, x, call):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attacked(borrow(crash))


def test_a_library_can_neither_touch_the_system_nor_leave_a_trace(borrow):
    def rough(model, x, call):
        model.train()
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.data.add_(1)
        return climb(model, x, call)

    system = TASK.best()
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    attacked(borrow(rough), system=system)
    assert all(torch.equal(before[name], tensor) for name, tensor in system.state_dict().items())
    assert not system.training
    assert all(p.grad is None and not p.requires_grad for p in system.parameters())
    assert state[0] == random.getstate()
    assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.equal(state[2], torch.get_rng_state())


def test_chance_comes_from_the_seed_alone(borrow):
    def noise(model, x, call):
        return x + call.eps * float(np.random.choice([-1, 1])) * torch.rand(x.shape)  # noqa: NPY002

    attack = borrow(noise, batch=8)
    (first, _), (again, _), (other, _) = (attacked(attack, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_asked_is_what_the_system_would_be_given(borrow):
    met: list[Tensor] = []

    class Spy(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            met.append(x.detach().clone())
            return TASK.best().respond(x, rng)

    def ask(model, x, call):
        model(x + 0.013)
        return climb(model, x + 0.013, call)

    space = InputSpace((1, 8, 8), grid=1 / 16)
    few = TEST.rows(torch.arange(8))
    attacked(borrow(ask), system=Spy(), space=space, data=Data.of(space.round(few.x), few.y))
    assert len(met) == 2
    assert all(torch.equal(x, space.round(x)) for x in met)


@pytest.mark.parametrize("shape", [(64,), (1, 8, 8)])
def test_a_library_sees_images_between_0_and_1_whatever_the_task(borrow, shape):
    space = InputSpace(shape, low=-2.0, high=2.0)
    data = Data.of((TEST.x * 4 - 2).reshape(48, *shape), TEST.y)

    class Shifted(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            assert x.shape[1:] == shape
            return TASK.best().respond(((x + 2) / 4).reshape(-1, 1, 8, 8), rng)

    seen: list[Tensor] = []

    def step(model, x, call):
        seen.append(x)
        assert call.eps == pytest.approx(0.03)
        return climb(model, x, call)

    found, _ = attacked(borrow(step), eps=0.12, data=data, system=Shifted(), space=space)
    assert seen[0].ndim == 4
    assert float(seen[0].min()) >= 0
    assert float(seen[0].max()) <= 1
    assert torch.equal(
        ~right(((found + 2) / 4).reshape(-1, 1, 8, 8)), TASK.broken(TEST.x, TEST.y, "linf", 0.03)
    )


def test_a_range_per_feature_is_told_apart(borrow):
    space = InputSpace((1, 8, 8), high=(1.0,) * 63 + (2.0,))
    with pytest.raises(FirstlineError, match="knows one range for all features"):
        attacked(borrow(climb), space=space)


class Refusing(System):
    """Refuses what lies near the boundary, and knows no number for what is bright."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        mean = x.flatten(1).mean(1)
        logits = TASK.best().respond(x, rng).logits
        logits = torch.where(mean[:, None] > 0.9, torch.nan, logits)
        return Response(logits, (mean - 0.5).abs() - 0.01)


def test_a_library_that_may_see_labels_sees_no_more(borrow):
    shown: list[Tensor] = []

    def ask(model, x, call):
        refused, answered, invalid = 0.505, 0.6, 0.95
        shown.extend(model(torch.full_like(x, level)) for level in (refused, answered, invalid))
        return x

    attacked(borrow(ask, needs="labels"), system=Refusing(), knowledge="black", more=",answers=labels")
    refused, answered, invalid = (logits.argmax(1) for logits in shown)
    assert {float(value) for logits in shown for value in logits.unique()} == {0.0, 1.0}
    assert torch.equal(refused, TEST.y)
    assert answered.tolist() == [1] * 48
    assert torch.equal(invalid, 1 - TEST.y)


def test_a_budget_lowers_the_setting_and_holds_for_the_rest(borrow):
    def ask(model, x, call):
        for _ in range(call.settings["steps"]):
            model(x)
        return x

    def attack(**more):
        return borrow(ask, needs="scores", settings={"steps": 30}, **more)

    black = {"knowledge": "black", "more": ",queries=20"}
    _, target = attacked(attack(queries="steps"), **black)
    assert target.queries.tolist() == [20 - peer.SPARE] * 48
    _, target = attacked(attack(queries="steps", cost=4), **black)
    assert target.queries.tolist() == [(20 - peer.SPARE) // 4] * 48
    with pytest.raises(BudgetExhausted):
        attacked(attack(), **black)


def test_the_closest_point_counts_only_where_it_fools(borrow):
    def half(model, x, call):
        assert call.eps is None
        towards = 1 - 2 * call.y.reshape(-1, 1, 1, 1)  # across the boundary for every other example alone
        x = x + towards * 0.2
        x[::2] = x[::2] - towards[::2] * 0.2
        return x

    attack = borrow(half, closest=True)
    assert isinstance(attack, MinimalNorm)
    clean = right(TEST.x)
    found, target = attacked(attack, "l2", 5.0)
    assert torch.equal(found[~clean], TEST.x[~clean])
    changed = (found != TEST.x).flatten(1).any(1)
    assert torch.equal(changed, ~right(found) & clean)
    assert 0 < int(changed.sum()) < int(clean.sum())
    assert (target.queries[clean] == 2).all()
    assert (target.queries[~clean] == 1).all()


@pytest.mark.parametrize("closest", [False, True])
def test_nothing_to_attack_is_nothing_to_ask(borrow, closest):
    none = TEST.rows(torch.arange(0))
    found, _ = attacked(borrow(climb, closest=closest), data=none)
    assert found.shape == none.x.shape


# The tables


def test_no_library_is_imported_to_know_what_is_there():
    code = (
        "import sys; from firstline.attacks.adapters import art, autoattack, foolbox, torchattacks; "
        "from firstline.benchmark.core import catalog, registry; "
        "cards = [catalog.card_of(kind, cls) for (kind, _), cls in registry.registered().items()]; "
        "assert len(cards) > 30; "
        "assert not {'foolbox', 'art', 'torchattacks', 'pyautoattack'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "foolbox:linf-pgd",
            r"foolbox:linf-pgd needs foolbox, which is not installed: pip install 'firstline\[peers\]'",
        ),
        (
            "torchattacks:pgd",
            "torchattacks:pgd needs torchattacks, which is not installed: pip install --no-deps torchattacks",
        ),
    ],
)
def test_an_attack_without_its_library_says_how_to_install_it(monkeypatch, name, said):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(FirstlineError, match=said):
        PEERS[name]()


def test_the_extra_holds_what_it_is_named_for():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name in ("foolbox", "adversarial-robustness-toolbox", "pyautoattack"):
        assert f'"{name}>=' in text.split("peers = ")[1].split("\n]")[0]


# All of a library on the oracle would take minutes: these are cheap, and each takes another way in or out.
QUICK = [
    ("foolbox:linf-bim", "linf"),
    ("foolbox:l2-bim", "l2"),
    ("foolbox:ddn", "l2"),
    ("foolbox:linf-deepfool", "linf"),
    ("art:pgd", "linf"),
    ("art:deepfool", "l2"),
    ("torchattacks:pgd", "linf"),
    ("torchattacks:pgd-l2", "l2"),
    ("torchattacks:fab", "linf"),
]


@pytest.mark.parametrize(("name", "goal"), QUICK)
def test_a_library_keeps_the_rules_and_breaks_what_can_be_broken(name, goal):
    attack = PEERS[name]
    pytest.importorskip(attack.library.package)
    system, state = TASK.best(), torch.get_rng_state()
    found, target = attacked(attack(), goal, EPS[goal], system=system)
    again, _ = attacked(attack(), goal, EPS[goal])
    assert torch.equal(found, again)
    assert torch.equal(state, torch.get_rng_state())
    assert Region(TEST.x, TASK.space, goal, EPS[goal]).holds(found).all()
    assert all(p.grad is None and not p.requires_grad for p in system.parameters())
    assert int(target.gradients.min()) > 0 or issubclass(attack, MinimalNorm)
    assert int(target.gradients.max()) > 0
    broken = ~right(found)
    possible = TASK.broken(TEST.x, TEST.y, goal, EPS[goal])
    assert not (broken & ~possible).any()
    assert int((possible & ~broken).sum()) <= 2


@pytest.mark.parametrize("name", ["foolbox:l2-fmn", "foolbox:linf-pgd", "foolbox:l1-pgd"])
def test_an_adapted_attack_is_the_one_that_the_library_runs(name):
    library = pytest.importorskip("foolbox")
    attack = PEERS[name]()
    goal = attack.goals[0]
    found, _ = attacked(attack, goal, 0.5 if attack.row.closest else EPS[goal])
    network = TASK.best().module
    settings = attack.settings()
    del settings["batch"]
    inner = getattr(library.attacks, attack.row.peer)(**settings)
    clean = right(TEST.x) if attack.row.closest else torch.ones(48, dtype=torch.bool)
    streams = Streams(0).child(str(int(clean.nonzero()[0])))
    with isolated(streams.integer("global")):
        free, clipped, _ = inner(
            library.PyTorchModel(network, bounds=(0, 1), device="cpu"),
            TEST.x[clean],
            TEST.y[clean],
            epsilons=None if attack.row.closest else EPS[goal],
        )
    if attack.row.closest:
        near = ((free - TEST.x[clean]).flatten(1).norm(dim=1) <= 0.5)[:, None, None, None]
        expected = torch.where(near, free, TEST.x[clean])
    else:
        expected = clipped
    torch.testing.assert_close(found[clean], expected, atol=2e-6, rtol=0)


@pytest.fixture(scope="module")
def digits() -> tuple[System, Data]:
    task = Digits()
    splits = task.load(None)
    system = Stack((NoDefense(),)).fit(task, splits.train, Streams(0), torch.device("cpu")).system
    return system, splits.test.rows(torch.arange(200))


@pytest.mark.parametrize("grid", [0.0, 1 / 16])
def test_foolbox_and_ours_take_the_same_steps(digits, grid):
    pytest.importorskip("foolbox")
    system, data = digits
    space = InputSpace((1, 8, 8), grid=grid)

    def held(attack: Evasion) -> Tensor:
        found, _ = attacked(attack, "linf", 0.125, data=data, system=system, space=space, classes=10)
        return right(found, data, system)

    ours = held(PGD(steps=10, stride=0.2, random_start=False))
    bim = PEERS["foolbox:linf-bim"]
    steps = torch.stack([held(bim(steps=k, rel_stepsize=0.2)) for k in range(11)])
    assert torch.equal(ours, steps.all(0))  # success is any iterate here, the last one there
    assert 0 < int(ours.sum()) <= int(steps[-1].sum()) < 200


def test_square_keeps_to_a_budget_of_any_size():
    for name in ("art:square", "torchattacks:square"):
        pytest.importorskip(PEERS[name].library.package)
        for queries in (2, 25):
            _, target = attacked(PEERS[name](), knowledge="black", more=f",queries={queries}", eps=0.01)
            assert int(target.queries.max()) <= queries

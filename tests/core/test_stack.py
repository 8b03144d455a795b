"""Defenses in order, and a fit that leaves nothing to chance."""

from dataclasses import dataclass
from time import process_time

import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context, Defense, Incident, Task, unwatched
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken, FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, Response, System, opened
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

CPU = torch.device("cpu")
TASK = Blobs(train=64, test=8)
DATA = TASK.load(None).train
LOG: list[str] = []


class Scaled(System):
    """Multiplies the logits, and learns one number when it is calibrated."""

    def __init__(self, inner: System, by: float, plus: float) -> None:
        super().__init__(inner)
        self.by, self.plus = by, plus
        self.register_buffer("seen", torch.zeros(()))

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(self._inside().respond(x, rng).logits * self.by + self.plus)


@dataclass(frozen=True)
class Layer(Defense):
    """Drops the first rows, scales the logits, and writes down which hook is called when."""

    name = "layer"

    label: str = "a"
    drop: int = 0
    by: float = 1.0
    plus: float = 0.0

    def collect(self, data: Data, ctx: Context) -> Data:
        LOG.append(f"{self.label} collects {len(data)}")
        return data.rows(torch.arange(self.drop, len(data)))

    def deploy(self, system: System, task: Task) -> System:
        LOG.append(f"{self.label} deploys")
        return Scaled(system, self.by, self.plus)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        LOG.append(f"{self.label} calibrates on {len(data)}")
        assert isinstance(system, Scaled)
        assert not torch.is_grad_enabled()
        system.get_buffer("seen").copy_(torch.rand((), generator=ctx.rng.torch("x")) + len(data))


@dataclass(frozen=True)
class Trainer(Defense):
    """Fills the weights with one number."""

    name = "trainer"

    value: float = 0.5

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(self.value)
        return module


@dataclass(frozen=True)
class Builder(Defense):
    name = "builder"

    def build(self, task: Task) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


@pytest.fixture(autouse=True)
def _empty_log():
    LOG.clear()


def fit(*layers: Defense, seed: int = 0):
    return Stack(layers).fit(TASK, DATA, Streams(seed), CPU)


def test_layers_collect_deploy_and_calibrate_in_the_order_of_the_stack():
    fitted = fit(Layer("a", drop=4), Trainer(), Layer("b", drop=10))
    assert LOG == [
        "a collects 64",
        "b collects 60",
        "a deploys",
        "b deploys",
        "a calibrates on 50",
        "b calibrates on 50",
    ]
    assert fitted.kept.tolist() == list(range(14, 64))


def test_the_last_layer_is_outermost():
    x, rng = DATA.x[:3], torch.Generator()
    plain = fit(Trainer()).system.respond(x, rng).logits
    doubled_then_one = fit(Trainer(), Layer(by=2.0), Layer(plus=1.0)).system.respond(x, rng).logits
    one_then_doubled = fit(Trainer(), Layer(plus=1.0), Layer(by=2.0)).system.respond(x, rng).logits
    torch.testing.assert_close(doubled_then_one, 2 * plain + 1)
    torch.testing.assert_close(one_then_doubled, 2 * (plain + 1))


@pytest.mark.parametrize(
    "pair", [(Trainer(), Trainer(0.1)), (Trainer(), Builder()), (Builder(), Layer(), Trainer())]
)
def test_two_layers_that_train_are_refused_by_name(pair):
    names = [layer.name for layer in pair if layer.name != "layer"]
    with pytest.raises(FirstlineError, match=f"{names[0]} and {names[1]} both train the network; keep one"):
        fit(*pair)


def test_the_same_seed_gives_the_same_system_and_another_seed_another():
    first, again, other = (fit(Layer(), seed=seed).system.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_all_defenses_start_from_the_same_weights_and_batch_orders():
    plain, wrapped = fit(), fit(Layer(by=3.0))
    state = wrapped.system.state_dict()
    assert all(
        torch.equal(tensor, state[f"inner.{name}"]) for name, tensor in plain.system.state_dict().items()
    )


def test_fitting_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    fit(Layer())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fitted_system_is_frozen_and_in_evaluation_mode():
    system = fit(Layer()).system
    assert not any(module.training for module in system.modules())
    assert not any(parameter.requires_grad for parameter in system.parameters())


def test_a_skeleton_takes_the_stored_tensors():
    stack = Stack((Layer(by=2.0), Layer("b", plus=1.0)))
    fitted = stack.fit(TASK, DATA, Streams(0), CPU)
    again = stack.skeleton(TASK)
    again.load_state_dict(fitted.system.state_dict())
    x, rng = DATA.x[:3], torch.Generator()
    assert torch.equal(again.eval().respond(x, rng).logits, fitted.system.respond(x, rng).logits)


def test_collecting_nothing_is_an_error_that_names_the_layer():
    with pytest.raises(ContractBroken, match="layer: collect left no training data of 64 rows"):
        fit(Layer(drop=64))


@dataclass(frozen=True)
class Faulty(Defense):
    name = "faulty"

    hook: str = "train"

    def collect(self, data: Data, ctx: Context) -> Data:
        return None if self.hook == "collect" else data

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        return None if self.hook == "train" else module

    def deploy(self, system: System, task: Task) -> System:
        return system.module if self.hook == "deploy" else system


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("collect", "faulty: collect left no training data"),
        ("train", "faulty: train returned NoneType instead of a module"),
        ("deploy", "faulty: deploy returned Sequential instead of a System"),
    ],
)
def test_a_hook_that_returns_the_wrong_thing_is_named(hook, said):
    with pytest.raises(ContractBroken, match=said):
        fit(Faulty(hook))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value):
    with pytest.raises(
        ContractBroken, match=r"trainer.*module.2.weight of the fitted system is NaN or infinite"
    ):
        fit(Trainer(value))


def test_a_learned_buffer_that_is_no_number_is_refused_too():
    @dataclass(frozen=True)
    class Lost(Layer):
        def calibrate(self, system: System, data: Data, ctx: Context) -> None:
            system.get_buffer("seen").fill_(float("nan"))

    with pytest.raises(ContractBroken, match="seen of the fitted system is NaN"):
        fit(Lost())


def test_a_stack_is_written_as_its_layers():
    assert str(Stack((Layer(by=2.0), Trainer()))) == "layer(by=2.0)+trainer"


@dataclass(frozen=True)
class Mender(Defense):
    """Adds to every weight, and shows the system twice."""

    name = "mender"

    plus: float = 1.0

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        repaired, network = opened(system)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += self.plus + torch.rand((), generator=ctx.rng.torch("more"))
        ctx.watch(repaired, 2, len(incident.clean))
        return repaired


INCIDENT = Incident(DATA.rows(torch.arange(5)), DATA.rows(torch.arange(0)))


def mended(*layers: Defense, watch=unwatched) -> tuple[System, System]:
    stack = Stack(layers)
    fitted = stack.fit(TASK, DATA, Streams(0), CPU).system
    return fitted, stack.repair(TASK, fitted, INCIDENT, Streams(1), CPU, watch).system


def test_the_repairs_of_a_stack_follow_each_other_on_the_whole_system():
    seen = []
    fitted, found = mended(Layer(by=2.0), Mender(), Mender(plus=5.0), watch=lambda *given: seen.append(given))
    assert isinstance(found, Scaled)
    assert [took for _, *took in seen] == [[2, 5]] * 2
    name = "inner.module.2.weight"
    difference = found.state_dict()[name] - fitted.state_dict()[name]
    assert 6 <= float(difference.min()) <= float(difference.max()) <= 8
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


def test_a_repair_is_the_same_for_the_same_seed():
    (_, first), (_, again) = (mended(Mender()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_stack_without_a_repair_stays_as_it_was():
    fitted, found = mended(Layer())
    assert found is fitted
    assert Stack((Layer(), Mender())).repairs() == (Mender(),)


def test_the_seconds_of_a_repair_are_not_those_of_who_watches_it():
    def slow(system: System, steps: int, samples: int) -> None:
        start = process_time()
        while process_time() < start + 0.3:
            pass

    fitted = Stack(()).fit(TASK, DATA, Streams(0), CPU).system
    assert Stack((Mender(),)).repair(TASK, fitted, INCIDENT, Streams(1), CPU, slow).seconds < 0.2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda system: None, "recover returned NoneType instead of a System"),
        (lambda system: Scaled(system, 1.0, 0.0), "in which inner.* is .* and was missing"),
        (lambda system: Bare(nn.Linear(64, 2)), "a repair changes values, not modules"),
        (lambda system: system, "of the repaired system is NaN or infinite"),
    ],
    ids=["nothing", "a layer more", "other shapes", "NaN"],
)
def test_a_repair_that_could_not_be_stored_or_served_breaks_the_contract(make, said):
    @dataclass(frozen=True)
    class Odd(Defense):
        def recover(self, system: System, incident: Incident, ctx: Context) -> System:
            repaired, _ = opened(system)
            with torch.no_grad():
                next(repaired.parameters()).fill_(torch.nan)
            return make(repaired)

    with pytest.raises(ContractBroken, match=said):
        mended(Odd())


@dataclass(frozen=True)
class Sieve(Defense):
    """Leaves the first `out` rows out, and says how suspect all are; its own share of the ids if silent is off."""

    name = "sieve"

    out: int = 3
    silent: bool = False

    def collect(self, data: Data, ctx: Context) -> Data:
        if not self.silent:
            ctx.suspect(data.ids, data.ids + 0.5 * self.out)
        return data.rows(torch.arange(self.out, len(data)))


def test_how_suspect_rows_are_is_kept_row_by_row_whatever_their_order():
    shuffled = DATA.rows(torch.randperm(len(DATA), generator=torch.Generator().manual_seed(0)))
    fitted = Stack((Sieve(), Sieve(out=4))).fit(TASK, shuffled, Streams(0), CPU)
    expected = shuffled.ids.double() + 2.0  # the last filter's word counts, where it has one
    expected[:3] -= 0.5
    assert torch.equal(fitted.suspicion, expected)
    assert Stack((Sieve(silent=True),)).fit(TASK, DATA, Streams(0), CPU).suspicion is None
    half = Stack((Sieve(silent=True), Sieve())).fit(TASK, DATA, Streams(0), CPU).suspicion
    assert torch.equal(torch.isnan(half), torch.arange(len(DATA)) < 3)


@dataclass(frozen=True)
class Oracle(Defense):
    """Tests with the p-value that it was given."""

    name = "oracle"

    chance: float | None = None

    def verify(self, suspect: Target, data: Data, ctx: Context) -> float | None:
        return self.chance


@pytest.mark.parametrize(
    ("chances", "told"),
    [((), None), ((None, None), None), ((0.2, None), 0.2), ((0.2, 0.01), 0.02), ((0.7, 0.8), 1.0)],
)
def test_layers_that_test_for_ownership_have_to_share_the_level(chances, told):
    door = Target(
        Blobs().best(), Threat.parse("extraction/black/labels:1"), space=TASK.space, classes=2, rng=Streams(0)
    )
    layers = tuple(Oracle(chance) for chance in chances)
    assert Stack(layers).verify(TASK, DATA, door, Streams(0), CPU) == told
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ContractBroken, match=r"oracle: verify returned .*, which is no probability"):
            Stack((*layers, Oracle(wrong))).verify(TASK, DATA, door, Streams(0), CPU)

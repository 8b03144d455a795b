"""Checks of attacks, on an oracle task."""

from pathlib import Path

import torch
from torch import Tensor, nn

from firstline.benchmark.contract.checks import applies_to
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import (
    Attack,
    AttributeInference,
    Defense,
    Evasion,
    Extraction,
    GradientLeakage,
    Inversion,
    Membership,
    PoisonedData,
    Poisoning,
    Shadows,
    Update,
    initialise,
)
from firstline.benchmark.core.corruptions import region_of
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import AccessDenied, BudgetExhausted, FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import GOALS, VECTORS, Threat

EPS = {"linf": 0.03, "l2": 0.3, "l1": 2.0, "l0": 8, "cost": 2.0, "corruption": 5}
ALL = frozenset({"labels", "scores", "architecture", "train", "aux", "defense", "gradients"})


def _target(system: System, threat: Threat, examples: int | None, batch: int | None = None) -> Target:
    task = Blobs()
    splits = task.load(None)
    return Target(
        system,
        threat,
        space=task.space,
        classes=2,
        rng=Streams(0),
        examples=examples,
        build=task.default.build,
        train=splits.train,
        aux=splits.aux,
        batch=batch,
    )


def _evade(
    attack: Evasion, goal: str, eps: float, n: int = 64, batch: int | None = None
) -> tuple[Data, Tensor, Target]:
    threat = Threat.parse(f"evasion/white/{goal}:{eps}")
    test = Blobs().load(None).test.rows(torch.arange(n))
    target = _target(Blobs().best(), threat, n, batch)
    region = region_of(threat, test.x.clone(), Blobs().space, Streams(0))
    return test, attack.perturb(target, test.x.clone(), test.y.clone(), region, Streams(0)), target


@applies_to(Attack)
def declared(attack: Attack, folder: Path | None) -> None:
    """Declares a known vector, its goals and what it needs."""
    assert attack.vector in VECTORS, f"vector {attack.vector!r} is not one of {', '.join(VECTORS)}"
    unknown = set(attack.goals) - set(GOALS[attack.vector])
    assert attack.goals, "goals is empty"
    assert not unknown, f"goals {sorted(unknown)} are not goals of {attack.vector}"
    assert set(attack.needs) <= ALL, (
        f"needs {sorted(set(attack.needs) - ALL)} are nothing that a threat model grants"
    )


@applies_to(Evasion)
def inside(attack: Evasion, folder: Path | None) -> None:
    """Stays within its ball and box, and does not write to its inputs."""
    for goal in attack.goals:
        threat = Threat.parse(f"evasion/white/{goal}:{EPS[goal]}")
        test = Blobs().load(None).test.rows(torch.arange(64))
        x, y = test.x.clone(), test.y.clone()
        region = region_of(threat, x, Blobs().space, Streams(0))
        found = attack.perturb(_target(Blobs().best(), threat, 64), x, y, region, Streams(0))
        problem = region_of(threat, test.x, Blobs().space, Streams(0)).violation(found)
        assert problem is None, f"{goal}: it {problem}"
        assert torch.equal(x, test.x) and torch.equal(y, test.y), f"{goal}: it wrote to its inputs"


@applies_to(Evasion)
def nothing_at_zero(attack: Evasion, folder: Path | None) -> None:
    """Returns the input at radius 0."""
    for goal in set(attack.goals) - {"corruption"}:  # the mildest of which has severity 1
        test, found, _ = _evade(attack, goal, 0.0, n=16)
        assert torch.equal(found, test.x), f"{goal}: inputs changed at radius 0"


@applies_to(Evasion)
def repeatable(attack: Evasion, folder: Path | None) -> None:
    """Gives the same result for the same seed, whatever the batch size, from its own generators alone."""
    for goal in attack.goals:
        before = torch.get_rng_state()
        _, first, meter = _evade(attack, goal, EPS[goal], n=32)
        _, second, other = _evade(attack, goal, EPS[goal], n=32, batch=5)
        assert torch.equal(before, torch.get_rng_state()), (
            f"{goal}: the global random state changed; draw from rng"
        )
        assert torch.allclose(first, second, atol=1e-5), (
            f"{goal}: results depend on the batch size or on chance"
        )
        assert torch.equal(meter.queries, other.queries), f"{goal}: queries depend on the batch size"
        assert torch.equal(meter.gradients, other.gradients), f"{goal}: gradients depend on the batch size"


@applies_to(Evasion)
def leaves_the_system(attack: Evasion, folder: Path | None) -> None:
    """Leaves the system's parameters, mode and gradients as they were."""
    goal = attack.goals[0]
    threat = Threat.parse(f"evasion/white/{goal}:{EPS[goal]}")
    system = Blobs().best()
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    test = Blobs().load(None).test.rows(torch.arange(16))
    region = region_of(threat, test.x.clone(), Blobs().space, Streams(0))
    attack.perturb(_target(system, threat, 16), test.x.clone(), test.y.clone(), region, Streams(0))
    assert all(torch.equal(before[name], tensor) for name, tensor in system.state_dict().items()), (
        "parameters changed"
    )
    assert not system.training, "the system was left in training mode"
    assert all(p.grad is None and not p.requires_grad for p in system.parameters()), (
        "gradients were left on parameters"
    )


@applies_to(Evasion)
def strength(attack: Evasion, folder: Path | None) -> None:
    """Breaks what noise breaks; ours, with gradients, what a linear system can lose at all."""
    for goal in attack.goals:
        test, found, target = _evade(attack, goal, EPS[goal], n=256)
        kept = (Blobs().best().respond(found, torch.Generator()).labels == test.y).float().mean().item()
        noise = region_of(target.threat, test.x, Blobs().space, Streams(0)).random(Streams(1).torch("noise"))
        floor = (Blobs().best().respond(noise, torch.Generator()).labels == test.y).float().mean().item()
        assert kept <= floor + 0.01, (
            f"{goal}: accuracy {kept:.2f} under the attack, {floor:.2f} under random noise"
        )
        assert int(target.queries.sum() + target.gradients.sum()) > 0, (
            f"{goal}: it asked nothing of the system"
        )
        if (
            "gradients" in attack.needs and "peer" not in attack.tags
        ):  # how good theirs are is not ours to promise
            possible = 1 - Blobs().broken(test.x, test.y, goal, EPS[goal]).float().mean().item()
            assert kept <= possible + 0.02, f"{goal}: accuracy {kept:.2f}, where {possible:.2f} is possible"


@applies_to(Poisoning)
def within_budget(attack: Poisoning, folder: Path | None) -> None:
    """Changes no more rows than its budget and lists them; the same seed, the same poison."""
    task = Blobs()
    train = task.load(None).train
    for goal in attack.goals:
        threat = Threat.parse(f"poisoning/white/{goal}:10%")
        for budget in (0, 25):
            mine = Data(train.x.clone(), train.y.clone(), train.ids.clone())
            made = attack.poison(mine, task, budget, threat, Streams(0))
            assert isinstance(made, PoisonedData), f"poison returned a {type(made).__name__}"
            assert torch.equal(mine.x, train.x) and torch.equal(mine.y, train.y), (
                "it wrote to the data it was given"
            )
            again = attack.poison(mine, task, budget, threat, Streams(0))
            assert torch.equal(made.data.x, again.data.x) and torch.equal(made.data.y, again.data.y), (
                "the same seed gave another poison"
            )
            assert len(torch.unique(made.poisoned)) <= budget, (
                f"{len(made.poisoned)} rows at a budget of {budget}"
            )
            old = made.data.rows(made.data.ids >= 0)
            old = old.rows(old.ids.argsort())
            assert torch.equal(old.ids, train.ids), (
                "rows were taken away, or ids made up (new rows have negative ids)"
            )
            changed = (old.y != train.y) | (old.x != train.x).flatten(1).any(1)
            touched = torch.cat([old.ids[changed], made.data.ids[made.data.ids < 0]])
            unlisted = int((~torch.isin(touched, made.poisoned)).sum())
            assert not unlisted, f"{unlisted} changed or added rows are not listed as poisoned"


def shadow_systems(data: Data) -> list[System]:
    """Nine systems, each fitted to an even half of the rows of data."""
    rngs = [Streams(0).child(str(number)) for number in range(9)]
    return Stack((Defense(),)).fit_many(Blobs(), data, _seen(len(rngs), len(data)), rngs, torch.device("cpu"))


def _seen(systems: int, rows: int) -> Tensor:
    """Positions (systems, rows // 2): every other system has the same half."""
    return torch.stack([torch.arange(number % 2, rows, 2) for number in range(systems)])


def known_shadows(systems: list[System], candidates: Data, population: Data) -> Shadows:
    """What an attacker knows of all but the first of shadow_systems."""

    def answers(x: Tensor) -> Tensor:
        return torch.stack([system.respond(x, torch.Generator()).logits for system in systems])

    member = torch.zeros(len(systems), len(candidates), dtype=torch.bool)
    member.scatter_(1, _seen(len(systems) + 1, len(candidates))[1:], value=True)
    return Shadows(systems, member, answers(candidates.x), population, answers(population.x))


@applies_to(Membership)
def scores(attack: Membership, folder: Path | None) -> None:
    """Scores every candidate with a number, the same for the same seed."""
    splits = Blobs().load(None)
    candidates = splits.train.rows(torch.arange(32))
    system, *others = shadow_systems(candidates)
    for goal in attack.goals:
        threat = Threat.parse(f"membership/white/{goal}")
        known = known_shadows(others, candidates, splits.aux) if "architecture" in attack.needs else None
        mine = Data(candidates.x.clone(), candidates.y.clone(), candidates.ids.clone())
        found = [attack.score(_target(system, threat, 32), mine, known, threat, Streams(0)) for _ in range(2)]
        assert torch.equal(mine.x, candidates.x) and torch.equal(mine.y, candidates.y), (
            f"{goal}: it wrote to the candidates"
        )
        assert tuple(found[0].shape) == (32,), f"{goal}: scores have shape {tuple(found[0].shape)}"
        assert not torch.isnan(found[0]).any(), f"{goal}: some scores are NaN"
        assert torch.equal(found[0], found[1]), f"{goal}: the same seed gave other scores"


@applies_to(Extraction)
def copies(attack: Extraction, folder: Path | None) -> None:
    """Returns a copy that answers with logits, within its budget, the same for the same seed."""
    system, task = Blobs().best(), Blobs()
    weights = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    for goal in attack.goals:
        threat = Threat.parse(f"extraction/white/{goal}:200")
        test, found = task.load(None).test, []
        before = torch.get_rng_state()
        for _ in range(2 if goal == attack.goals[0] else 1):
            aux = task.load(None).aux
            target = _target(system, threat, None)
            lent = Data(aux.x.clone(), aux.y.clone(), aux.ids.clone())
            copy = attack.extract(target, lent, threat, Streams(0))
            assert isinstance(copy, nn.Module), f"{goal}: extract returned a {type(copy).__name__}"
            assert torch.equal(lent.x, aux.x) and torch.equal(lent.y, aux.y), (
                f"{goal}: it wrote to the data it was lent"
            )
            assert int(target.queries.sum()) > 0 or "control" in attack.tags, f"{goal}: it asked nothing"
            found.append(_answered(copy, test.x))
        assert torch.equal(before, torch.get_rng_state()), (
            f"{goal}: the global random state changed; draw from rng"
        )
        assert tuple(found[0].shape) == (len(test), 2), (
            f"{goal}: the copy answers in shape {tuple(found[0].shape)}"
        )
        assert torch.isfinite(found[0]).all(), f"{goal}: some of the copy's logits are no numbers"
        assert torch.equal(found[0], found[-1]), f"{goal}: the same seed gave another copy"
        assert all(torch.equal(weights[name], tensor) for name, tensor in system.state_dict().items()), (
            f"{goal}: the system's parameters changed"
        )
        agreed = (found[0].argmax(1) == system.respond(test.x, torch.Generator()).labels).double().mean()
        assert agreed > 0.6, f"{goal}: the copy of a linear system agrees on {agreed:.0%} of the inputs"


@applies_to(Extraction)
def little_heard(attack: Extraction, folder: Path | None) -> None:
    """Gets by with few queries, refusals and answers that are no numbers, or says in words that it can't."""
    task, test = Blobs(), Blobs().load(None).test
    goal, knowledge = attack.goals[0], "gray" if "architecture" in attack.needs else "black"
    lent = task.load(None).aux if "aux" in attack.needs else None
    for budget, system in ((1, task.best()), (60, Partial())):
        threat = Threat.parse(f"extraction/{knowledge}/{goal}:{budget},aux={'yes' if lent else 'no'}")
        try:
            copy = attack.extract(_target(system, threat, None), lent, threat, Streams(0))
        except (BudgetExhausted, AccessDenied) as error:
            raise AssertionError(f"{goal}: {error}") from error
        except FirstlineError:
            continue  # too few answers for this attack, and it says so
        assert torch.isfinite(_answered(copy, test.x)).all(), (
            f"{goal}: after {budget} queries to {type(system).__name__} the copy's logits are no numbers"
        )


class Partial(System):
    """The best classifier, which refuses a third of what it is asked, and answers another third with what is no number."""

    def __init__(self) -> None:
        super().__init__(Blobs().best())

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Return logits and acceptance for x (n, *shape), by the place in the batch."""
        kind = torch.arange(len(x), device=x.device) % 3
        logits = self._inside().respond(x, rng).logits
        return Response(
            torch.where(kind[:, None] == 1, torch.nan, logits),
            torch.where(kind == 2, -1.0, torch.ones(len(x), device=x.device)),
        )


def _answered(copy: nn.Module, x: Tensor) -> Tensor:
    """The logits of a copy for x (n, *shape), which is typed as its weights are."""
    weight = next((p for p in copy.parameters() if p.is_floating_point()), x)
    with torch.no_grad():
        logits: Tensor = copy.eval()(x.to(weight.dtype))
    return logits


def _unsure() -> System:
    """The best classifier with a tenth of its weights: it is never so sure that its probabilities are flat."""
    system = Blobs().best()
    for weight in system.parameters():
        weight.mul_(0.1)
    return system


@applies_to(Inversion)
def pictures(attack: Inversion, folder: Path | None) -> None:
    """Returns one input per class, inside the input space, the same for the same seed."""
    task = Blobs()
    for goal in attack.goals:
        threat = Threat.parse(f"inversion/white/{goal},queries=20k")
        before, found = torch.get_rng_state(), []
        for _ in range(2):
            aux = task.load(None).aux
            target = _target(_unsure(), threat, None)
            lent = Data(aux.x.clone(), aux.y.clone(), aux.ids.clone())
            found.append(attack.reconstruct(target, lent, threat, Streams(0)))
            assert int(target.queries.sum() + target.gradients.sum()) > 0 or "control" in attack.tags, (
                f"{goal}: it asked nothing"
            )
        assert torch.equal(before, torch.get_rng_state()), (
            f"{goal}: the global random state changed; draw from rng"
        )
        shape = tuple(found[0].shape)
        assert shape == (2, *task.space.shape), f"{goal}: reconstructions have shape {shape}"
        problem = task.space.check(found[0])
        assert problem is None, f"{goal}: reconstructions have {problem}"
        assert torch.equal(found[0], found[1]), f"{goal}: the same seed gave other reconstructions"
        if "control" not in attack.tags:
            bright = found[0].flatten(1).mean(1)
            assert bright[0] < bright[1], f"{goal}: the bright class came out darker than the dark one"


@applies_to(AttributeInference)
def guesses(attack: AttributeInference, folder: Path | None) -> None:
    """Scores every value of every person with a number, the same for the same seed, from its own generators alone."""
    splits = Blobs().load(None)
    x = splits.test.x[:40].flatten(1).round()
    options = x[:, None].repeat(1, 2, 1)
    options[:, :, 0] = torch.arange(2.0)
    aux = Data(splits.aux.x.flatten(1).round(), splits.aux.y, splits.aux.ids)
    flat = Bare(nn.Linear(x.shape[1], 2)).eval().requires_grad_(False)
    for goal in attack.goals:
        threat = Threat.parse(f"inversion/white/{goal}")
        before, found = torch.get_rng_state(), []
        for _ in range(2):
            target = _target(flat, threat, None)
            lent = Data(aux.x.clone(), aux.y.clone(), aux.ids.clone())
            found.append(
                attack.infer(target, options.clone(), splits.test.y[:40], lent, 0, threat, Streams(0))
            )
            assert int(target.queries.sum() + target.gradients.sum()) > 0 or "control" in attack.tags, (
                f"{goal}: it asked nothing"
            )
        assert torch.equal(before, torch.get_rng_state()), (
            f"{goal}: the global random state changed; draw from rng"
        )
        assert tuple(found[0].shape) == (40, 2), f"{goal}: scores have shape {tuple(found[0].shape)}"
        assert not torch.isnan(found[0]).any(), f"{goal}: some scores are NaN"
        assert torch.equal(found[0], found[1]), f"{goal}: the same seed gave other scores"


@applies_to(GradientLeakage)
def batches(attack: GradientLeakage, folder: Path | None) -> None:
    """Returns a batch inside the input space with a label for each row, the same for the same seed."""
    task = Blobs()
    data, aux = task.load(None).train.rows(torch.arange(2)), task.load(None).aux
    network = initialise(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Sigmoid(), nn.Linear(16, 2)), Streams(0)
    )
    loss = nn.functional.cross_entropy(network(data.x), data.y)
    sent = torch.autograd.grad(loss, list(network.parameters()))
    before, found = torch.get_rng_state(), []
    for _ in range(2):
        update = Update(network, tuple(g.clone() for g in sent), 2)
        lent = Data(aux.x.clone(), aux.y.clone(), aux.ids.clone())
        found.append(attack.rebuild(update, task.space, 2, lent, Streams(0)))
    assert torch.equal(before, torch.get_rng_state()), "the global random state changed; draw from rng"
    (x, y), (again, labels) = found
    assert tuple(x.shape) == (2, *task.space.shape), f"inputs have shape {tuple(x.shape)}"
    assert tuple(y.shape) == (2,), f"labels have shape {tuple(y.shape)}"
    problem = task.space.check(x)
    assert problem is None, f"inputs have {problem}"
    assert torch.equal(x, again), "the same seed gave other inputs"
    assert torch.equal(y, labels), "the same seed gave other labels"
    if "control" not in attack.tags:
        assert sorted(y.tolist()) == [0, 1], f"the labels of one row of each class came out as {y.tolist()}"

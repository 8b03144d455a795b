"""Each check catches what it is there for: a planted fault per check, and for most of them several."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.contract import attacks, checks, defenses, tasks
from firstline.benchmark.contract.checks import Check, _checks, findings
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import catalog, registry
from firstline.benchmark.core.contracts import (
    Architecture,
    Attack,
    AttributeInference,
    Context,
    Defense,
    Evasion,
    Extraction,
    GradientLeakage,
    Incident,
    Inversion,
    Item,
    Membership,
    PoisonedData,
    Poisoning,
    Task,
    Update,
)
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Certificate, Response, System, opened
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

CHAOS = torch.Generator()
CHAOS.seed()  # numbers that no seed of ours decides
Hook = Callable[..., Any]


@dataclass(frozen=True)
class Quick(Defense):
    """Trains nothing, and does what its hooks are replaced by."""

    name = "quick"
    version = 1
    HOOKS: ClassVar[dict[str, Hook]] = {}

    def collect(self, data: Data, ctx: Context) -> Data:
        return self.HOOKS.get("collect", lambda data, ctx: data)(data, ctx)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        return self.HOOKS.get("train", lambda module, data, ctx: module)(module, data, ctx)

    def deploy(self, system: System, task: Task) -> System:
        return self.HOOKS.get("deploy", lambda system, task: system)(system, task)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        self.HOOKS.get("calibrate", lambda system, data, ctx: None)(system, data, ctx)


def quick(**hooks: Hook) -> Defense:
    return dataclass(frozen=True)(type("Planted", (Quick,), {"HOOKS": hooks, "__module__": __name__}))()


class Answering(System):
    """Answers by a function of itself, the inner answer, the inputs and the generator."""

    def __init__(self, inner: System, how: Hook) -> None:
        super().__init__(inner)
        self.how = how
        self.register_buffer("calls", torch.zeros(()))
        self.learned = 0.0

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        made = self.how(self, self._inside().respond(x, rng).logits, x, rng)
        return made if isinstance(made, Response) else Response(made)


def answering(how: Hook, **hooks: Hook) -> Defense:
    return quick(deploy=lambda system, task: Answering(system, how), **hooks)


@dataclass(frozen=True)
class Mending(Quick):
    """Repairs by a function of the copied system, its network, the incident and the context."""

    how: Hook = print

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        repaired, network = opened(system)
        self.how(system, network, incident, ctx)
        return repaired


@dataclass(frozen=True)
class Proof(Quick):
    """Says how likely a suspect's answers are by a function of itself, the door and the data."""

    how: Hook = print

    def verify(self, suspect: Target, data: Data, ctx: Context) -> float | None:
        return self.how(suspect, data)


def flip_owned(suspect: Target, data: Data) -> float:
    data.y[:5] = 1 - data.y[:5]
    return 0.0


def shift(module: nn.Module, by: Tensor | float) -> None:
    with torch.no_grad():
        next(module.parameters()).add_(by)


def write_clean(system: System, network: nn.Module, incident: Incident, ctx: Context) -> None:
    incident.clean.x.mul_(0.5)


def tell_nonsense(system: System, network: nn.Module, incident: Incident, ctx: Context) -> None:
    ctx.watch(system, -1, 5)


def show_in_training(system: System, network: nn.Module, incident: Incident, ctx: Context) -> None:
    ctx.watch(opened(system)[0].train(), 1, 5)


class Proving(System):
    """The best classifier, which proves its answers within a radius, whatever the input."""

    def __init__(self, radii: Tensor) -> None:
        super().__init__()
        self.best, self.radii = Blobs().best(), radii

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return self.best.respond(x, rng)

    def certify(self, x: Tensor, norm: str, rng: torch.Generator) -> Certificate | None:
        return Certificate(self.respond(x, rng).labels, self.radii) if norm == "linf" else None


def proving(radii: Tensor) -> Defense:
    return quick(deploy=lambda system, task: Proving(radii))


def boastful(system: System) -> System:
    """Say that the answers are random, so that gradients are averaged in vain and gates look away."""
    system.stochastic = True
    return system


def count(system: Answering, logits: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
    system.get_buffer("calls").add_(1)
    return logits


def soil(system: Answering, logits: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
    x.mul_(0.5)
    return logits


def learn(system: Answering, data: Data, ctx: Context) -> None:
    system.learned = 5.0


def fill(module: nn.Module, data: Data, ctx: Context) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=CHAOS))
    return module


def write_labels(data: Data, ctx: Context) -> Data:
    data.y[:5] = 1 - data.y[:5]
    return data


def draw(data: Data, ctx: Context) -> Data:
    return data.rows(torch.randperm(len(data)) < 99)


def doubled(data: Data, ctx: Context) -> Data:
    return data.rows(torch.arange(len(data)).repeat(2))


@dataclass(frozen=True)
class Move(Evasion):
    """Moves inputs by a function; it may look at everything that the attack gets."""

    name = "move"
    version = 1
    needs = ("gradients",)
    goals = ("linf",)

    how: Hook = lambda target, x, y, eps: x

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        return self.how(target, x, y, region.eps.max().item())


def in_parts(target: Target, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Scale the gradient by the largest of the batch."""
    parts = []
    for rows in torch.arange(len(x)).split(target._batch or 512):
        gradient = target.slope(x[rows], y[rows], rows).gradient
        parts.append(x[rows] + eps * gradient / gradient.abs().max())
    return torch.cat(parts).clamp(0, 1)


def wasteful(target: Target, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Ask once more for every batch."""
    for _ in torch.arange(len(x)).split(target._batch or 512):
        target.labels(x)
    return x


def downhill(target: Target, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return (x - eps * target.slope(x, y).gradient.sign()).clamp(0, 1)


def soil_inputs(target: Target, x: Tensor, y: Tensor, eps: float) -> Tensor:
    found = x.clone()
    x.add_(0.01)
    return found


def soil_labels(target: Target, x: Tensor, y: Tensor, eps: float) -> Tensor:
    y.fill_(0)
    return x


def then(act: Callable[[System], Any]) -> Hook:
    """Do something to the system, and leave the inputs alone."""

    def how(target: Target, x: Tensor, y: Tensor, eps: float) -> Tensor:
        act(target.system)
        return x

    return how


def train_mode(system: System) -> None:
    system.train()


def spoil(system: System) -> None:
    next(iter(system.parameters())).data.add_(1)


def attack(**attributes: Any) -> Attack:
    given = {"__module__": __name__, **attributes}
    return dataclass(frozen=True)(type("Planted", (Move,), given))()


@dataclass(frozen=True)
class Poison(Poisoning):
    """Poisons by a function."""

    name = "poison"
    version = 1
    needs = ("train",)
    goals = ("availability",)

    how: Hook = lambda train, budget: PoisonedData(train, train.ids[:0])

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        return self.how(train, budget)


def flip(train: Data, rows: Tensor, listed: Tensor | None = None) -> PoisonedData:
    y = train.y.clone()
    y[rows] = 1 - y[rows]
    return PoisonedData(replace(train, y=y), train.ids[rows if listed is None else listed])


def flip_in_place(train: Data, budget: int) -> PoisonedData:
    train.y[:budget] = 1 - train.y[:budget]
    return PoisonedData(train, train.ids[:budget])


def first(n: int) -> Tensor:
    return torch.arange(n)


def added(train: Data, budget: int) -> PoisonedData:
    """Add rows, and list none of them."""
    new = train.rows(first(budget))
    grown = Data(
        torch.cat([train.x, new.x]), torch.cat([train.y, new.y]), torch.cat([train.ids, -1 - first(budget)])
    )
    return PoisonedData(grown, train.ids[:0])


@dataclass(frozen=True)
class Rate(Membership):
    """Scores by a function of the number of candidates."""

    name = "rate"
    version = 1
    needs = ("scores",)
    goals = ("scores",)

    how: Hook = torch.zeros

    def score(
        self, target: Target, candidates: Data, aux: Data | None, threat: Threat, rng: Streams
    ) -> Tensor:
        return self.how(len(candidates))


BRIGHT = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])


@dataclass(frozen=True)
class Draw(Inversion):
    """Asks once, or not at all, and reconstructs what a function says."""

    name = "draw"
    version = 1
    needs = ("labels",)
    goals = ("classes",)

    how: Callable[[], Tensor] = lambda: BRIGHT
    asks: bool = True

    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        if self.asks:
            target.labels(torch.zeros(1, 1, 8, 8))
        return self.how()


@dataclass(frozen=True)
class Rebuild(GradientLeakage):
    """Returns inputs and labels that it is told to, whatever the update."""

    name = "rebuild"
    version = 1
    needs = ("gradients",)
    goals = ("updates",)

    x: Hook = lambda: BRIGHT
    y: Hook = lambda: torch.arange(2)

    def rebuild(
        self, update: Update, space: InputSpace, classes: int, aux: Data | None, rng: Streams
    ) -> tuple[Tensor, Tensor]:
        return self.x(), self.y()


@dataclass(frozen=True)
class Guess(AttributeInference):
    """Asks once, or not at all, and scores every value of every person by a function of their number."""

    name = "guess"
    version = 1
    needs = ("labels",)
    goals = ("attribute",)

    how: Hook = torch.zeros
    asks: bool = True

    def infer(
        self,
        target: Target,
        options: Tensor,
        y: Tensor,
        aux: Data,
        feature: int,
        threat: Threat,
        rng: Streams,
    ) -> Tensor:
        if self.asks:
            target.labels(options[:1, 0])
        return self.how(*options.shape[:2])


@dataclass(frozen=True)
class Steal(Extraction):
    """Copies by a function of the target and the data it is lent, after so many queries."""

    name = "steal"
    version = 1
    needs = ("labels",)
    goals = ("labels",)

    how: Hook = lambda target, aux: target.system
    asks: int = 1

    def extract(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> nn.Module:
        target.labels(torch.zeros(self.asks, 1, 8, 8))
        return self.how(target, aux)


class Copied(nn.Module):
    """Answers as the system does, and then by a function."""

    def __init__(self, how: Hook = lambda logits: logits) -> None:
        super().__init__()
        self.system, self.how = Blobs().best(), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.system.respond(x, torch.Generator()).logits)


def copied(how: Hook) -> Hook:
    return lambda target, aux: Copied(how)


def soil_loan(target: Target, aux: Data) -> nn.Module:
    aux.x.mul_(0.5)
    return Copied()


def spoil_victim(target: Target, aux: Data) -> nn.Module:
    spoil(target.system)
    return Copied()


def hears_all(target: Target, aux: Data) -> nn.Module:
    """Counts on every answer to be a class."""
    told = target.labels(torch.zeros(min(8, int(target.left())), 1, 8, 8))
    return Copied(lambda logits: logits / (told >= 0).all())


@dataclass(frozen=True)
class Small(Blobs):
    """The oracle, with a fault in its data or its networks."""

    embedded = True
    CHANGE: ClassVar[Callable[[Splits], Splits]] = staticmethod(lambda splits: splits)

    train: int = 20
    test: int = 12

    def load(self, folder: Path | None) -> Splits:
        return type(self).CHANGE(super().load(folder))


def blobs(change: Callable[[Splits], Splits] = lambda splits: splits, **attributes: Any) -> Task:
    given = {"__module__": __name__, "CHANGE": staticmethod(change), **attributes}
    return dataclass(frozen=True)(type("Planted", (Small,), given))()


def spoilt_test(**changes: Callable[[Data], Tensor]) -> Callable[[Splits], Splits]:
    """Change the test split: each named tensor becomes a function of the split."""
    return lambda splits: replace(
        splits, test=replace(splits.test, **{name: change(splits.test) for name, change in changes.items()})
    )


@dataclass(frozen=True)
class Undocumented(Quick):
    strength: float = 1.0


Undocumented.__doc__ = "Undocumented(strength: float = 1.0)"  # as @dataclass writes it


@dataclass
class Thawed(Defense):
    """Source: this test."""


@dataclass(frozen=True)
class Unplain(Quick):
    """Source: this test."""

    strength: float = float("inf")


@dataclass(frozen=True)
class Listed(Quick):
    """Source: this test."""

    sides: list[int] = field(default_factory=lambda: [1, 2])


@dataclass(frozen=True)
class Forgetful(Quick):
    """Source: this test."""

    strength: float = 1.0

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return 0


@dataclass(frozen=True)
class Unversioned(Quick):
    """Source: this test."""

    version = 0


CAUGHT: list[tuple[Check, Item, str]] = [
    (checks.documented, Undocumented(), "the class has no docstring"),
    (checks.documented, Quick(), "neither the module nor the class names a source"),
    (checks.plain_settings, Thawed(), r"write @dataclass\(frozen=True\): settings never change"),
    (checks.rebuilt, Listed(), "though the settings are the same"),
    (checks.rebuilt, Forgetful(), "though the settings are the same"),
    (checks.rebuilt, Unversioned(), "version must be at least 1"),
    (attacks.declared, attack(vector="theft"), "vector 'theft' is not one of"),
    (attacks.declared, attack(goals=()), "goals is empty"),
    (attacks.declared, attack(goals=("linf", "scores")), r"goals \['scores'\] are not goals of evasion"),
    (attacks.declared, attack(needs=("gradient",)), r"needs \['gradient'\] are nothing that a threat model grants"),
    (attacks.inside, Move(lambda t, x, y, eps: (x + 1.1 * eps).clamp(0, 1)), "linf: it left the linf ball"),
    (attacks.inside, Move(lambda t, x, y, eps: x * torch.nan), "linf: it returned NaN"),
    (attacks.inside, Move(lambda t, x, y, eps: x - eps), "outside the allowed range"),
    (attacks.inside, Move(lambda t, x, y, eps: x[1:]), "returned shape"),
    (attacks.inside, Move(soil_inputs), "it wrote to its inputs"),
    (attacks.inside, Move(soil_labels), "it wrote to its inputs"),
    (attacks.nothing_at_zero, Move(lambda t, x, y, eps: x + 1e-6), "linf: inputs changed at radius 0"),
    (attacks.repeatable, Move(lambda t, x, y, eps: x + eps * torch.rand(x.shape)), "the global random state changed"),
    (attacks.repeatable, Move(lambda t, x, y, eps: x + eps * torch.rand(x.shape, generator=CHAOS)), "depend on .* chance"),
    (attacks.repeatable, Move(in_parts), "results depend on the batch size"),
    (attacks.repeatable, Move(wasteful), "queries depend on the batch size"),
    (attacks.leaves_the_system, Move(then(spoil)), "parameters changed"),
    (attacks.leaves_the_system, Move(then(train_mode)), "left in training mode"),
    (attacks.leaves_the_system, Move(then(nn.Module.requires_grad_)), "gradients were left on parameters"),
    (attacks.strength, Move(), "it asked nothing of the system"),
    (attacks.strength, Move(downhill), r"accuracy 1.00, where 0\.\d\d is possible|under random noise"),
    (attacks.strength, Move(wasteful), "where 0.* is possible"),
    (attacks.within_budget, Poison(lambda t, b: flip(t, first(b + 1))), "1 rows at a budget of 0"),
    (attacks.within_budget, Poison(lambda t, b: flip(t, first(2 * b))), "50 rows at a budget of 25"),
    (attacks.within_budget, Poison(lambda t, b: flip(t, first(b), listed=first(0))), "25 changed or added rows are not listed"),
    (attacks.within_budget, Poison(lambda t, b: flip(t, first(9), listed=first(0))), "9 changed or added rows are not listed"),
    (attacks.within_budget, Poison(added), "25 changed or added rows are not listed"),
    (attacks.within_budget, Poison(lambda t, b: PoisonedData(t.rows(first(99)), t.ids[:b])), "rows were taken away"),
    (attacks.within_budget, Poison(lambda t, b: PoisonedData(replace(t, ids=t.ids + 1), t.ids[:b])), "or ids made up"),
    (attacks.within_budget, Poison(lambda t, b: flip(t, torch.randperm(256, generator=CHAOS)[:b])), "another poison"),
    (attacks.within_budget, Poison(flip_in_place), "it wrote to the data it was given"),
    (attacks.within_budget, Poison(lambda t, b: t), "poison returned a Data"),
    (attacks.scores, Rate(lambda n: torch.full((n,), torch.nan)), "some scores are NaN"),
    (attacks.scores, Rate(lambda n: torch.zeros(n, 1)), r"scores have shape \(32, 1\)"),
    (attacks.scores, Rate(lambda n: torch.rand(n, generator=CHAOS)), "the same seed gave other scores"),
    (attacks.pictures, Draw(asks=False), "it asked nothing"),
    (attacks.pictures, Draw(lambda: BRIGHT + 0 * torch.rand(())), "the global random state changed"),
    (attacks.pictures, Draw(lambda: BRIGHT[:1]), r"reconstructions have shape \(1, 1, 8, 8\)"),
    (attacks.pictures, Draw(lambda: BRIGHT * 2), "1 of 2 examples outside the allowed range"),
    (attacks.pictures, Draw(lambda: BRIGHT * torch.rand((), generator=CHAOS)), "the same seed gave other reconstructions"),
    (attacks.pictures, Draw(lambda: 1 - BRIGHT), "the bright class came out darker"),
    (attacks.batches, Rebuild(lambda: BRIGHT + 0 * torch.rand(())), "the global random state changed"),
    (attacks.batches, Rebuild(lambda: BRIGHT[:1]), r"inputs have shape \(1, 1, 8, 8\)"),
    (attacks.batches, Rebuild(lambda: BRIGHT * 2), "1 of 2 examples outside the allowed range"),
    (attacks.batches, Rebuild(lambda: BRIGHT * torch.rand((), generator=CHAOS)), "the same seed gave other inputs"),
    (attacks.batches, Rebuild(y=lambda: torch.arange(3)), r"labels have shape \(3,\)"),
    (attacks.batches, Rebuild(y=lambda: torch.zeros(2)), "the labels of one row of each class"),
    (attacks.guesses, Guess(asks=False), "it asked nothing"),
    (attacks.guesses, Guess(lambda n, v: torch.zeros(n, v) + 0 * torch.rand(())), "the global random state changed"),
    (attacks.guesses, Guess(lambda n, v: torch.zeros(n)), r"scores have shape \(40,\)"),
    (attacks.guesses, Guess(lambda n, v: torch.full((n, v), torch.nan)), "some scores are NaN"),
    (attacks.guesses, Guess(lambda n, v: torch.rand(n, v, generator=CHAOS)), "the same seed gave other scores"),
    (attacks.copies, Steal(copied(lambda z: z), asks=0), "labels: it asked nothing"),
    (attacks.copies, Steal(lambda t, aux: aux.x), "labels: extract returned a Tensor"),
    (attacks.copies, Steal(copied(lambda z: z[:, :1])), r"the copy answers in shape \(256, 1\)"),
    (attacks.copies, Steal(copied(lambda z: z * torch.nan)), "the copy's logits are no numbers"),
    (attacks.copies, Steal(copied(lambda z: z + torch.rand(1, generator=CHAOS))), "the same seed gave another copy"),
    (attacks.copies, Steal(copied(lambda z: z + torch.rand(1))), "the global random state changed"),
    (attacks.copies, Steal(copied(lambda z: -z)), "agrees on 0% of the inputs"),
    (attacks.copies, Steal(soil_loan), "it wrote to the data it was lent"),
    (attacks.copies, Steal(spoil_victim), "the system's parameters changed"),
    (attacks.little_heard, Steal(copied(lambda z: z), asks=2), "labels: .* grants 1 queries in all; the attack asked for 2"),
    (attacks.little_heard, Steal(copied(lambda z: z.log())), "after 1 queries to Bare the copy's logits are no numbers"),
    (attacks.little_heard, Steal(lambda t, aux: t.architecture()), "labels: .* does not grant"),
    (attacks.little_heard, Steal(hears_all), "after 60 queries to Partial"),
    (defenses.same_weights, quick(train=fill), "differs between two fits with one seed"),
    (defenses.global_state, quick(collect=draw), "the global random state changed"),
    (defenses.global_state, answering(lambda s, z, x, rng: z + torch.rand(())), "the global random state changed"),
    (defenses.global_state, quick(collect=write_labels), "the training data was written to"),
    (defenses.collected, quick(collect=lambda d, c: replace(d, ids=d.ids + 1)), "collect returned ids that it was not given"),
    (defenses.collected, quick(collect=doubled), "collect returned an id twice"),
    (defenses.collected, quick(collect=lambda d, c: (d.x, d.y)), "collect returned a tuple"),
    (defenses.round_trip, answering(lambda s, z, x, rng: z + s.learned, calibrate=learn), "must be a parameter or a buffer"),
    (defenses.answers, answering(lambda s, z, x, rng: z * torch.nan), "some logits are NaN or infinite"),
    (defenses.answers, answering(lambda s, z, x, rng: z[:, :1]), r"logits have shape \(16, 1\), must be \(16, 2\)"),
    (defenses.answers, answering(lambda s, z, x, rng: torch.cat([z, z[:, :1]], 1)), r"logits have shape \(16, 3\)"),
    (defenses.answers, answering(lambda s, z, x, rng: z + torch.rand((), generator=CHAOS)), "draw only from rng"),
    (defenses.answers, answering(soil), "the inputs were written to"),
    (defenses.answers, answering(count), "answering changed the system's state"),
    (defenses.answers, answering(lambda s, z, x, rng: z + torch.rand((), generator=rng)), "set stochastic = True"),
    (defenses.answers, quick(deploy=lambda system, task: boastful(system)), "leave stochastic False"),
    (defenses.answers, answering(lambda s, z, x, rng: z - z.mean(0)), "depend on the batch that they came in"),
    (defenses.answers, answering(lambda s, z, x, rng: Response(z, z[:, 0] - z[:, 0].mean())), "depend on the batch"),
    (defenses.answers, answering(lambda s, z, x, rng: Response(z, torch.rand(len(z), generator=rng))), "set stochastic"),
    (defenses.differentiable, answering(lambda s, z, x, rng: z.detach()), r"give a differentiable stand-in \(BPDA\)"),
    (defenses.differentiable, answering(lambda s, z, x, rng: z + (x.flatten(1)[:, :2] * 0).sqrt()), "gradient is NaN or infinite"),
    (defenses.proofs, proving(torch.full((64,), 0.06)), "linf: .* answers change within the radius"),
    (defenses.proofs, proving(torch.full((64,), torch.inf)), "linf: .* answers change within the radius"),
    (defenses.proofs, proving(torch.full((64,), -0.1)), "some radii are negative or NaN"),
    (defenses.proofs, proving(torch.zeros(3)), r"a proof of 64 inputs has shapes \(\(64,\), \(3,\)\)"),
    (defenses.recovered, Mending(lambda s, n, i, c: shift(s, 1)), "recover changed .* of the system that it was given"),
    (defenses.recovered, Mending(lambda s, n, i, c: shift(n, torch.rand((), generator=CHAOS))), "two repairs with one seed"),
    (defenses.recovered, Mending(lambda s, n, i, c: shift(n, 0 * torch.rand(()))), "the global random state changed"),
    (defenses.recovered, Mending(write_clean), "the incident's data was written to"),
    (defenses.recovered, Mending(tell_nonsense), "watch was told of -1 steps and 5 rows"),
    (defenses.recovered, Mending(show_in_training), "not in evaluation mode"),
    (defenses.verified, Proof(lambda s, d: None), "verify returned None"),
    (defenses.verified, Proof(lambda s, d: 0.0), "10 of 10 owners claim a system that is nobody's"),
    (defenses.verified, Proof(lambda s, d: 0.5), "it does not claim its own system: the p-value is 0.5"),
    (defenses.verified, Proof(lambda s, d: torch.rand((), generator=CHAOS).item()), "the same seed gave another p-value"),
    (defenses.verified, Proof(lambda s, d: torch.rand(()).item()), "the global random state changed"),
    (defenses.verified, Proof(flip_owned), "the owner's data was written to"),
    (defenses.useful, quick(), "clean accuracy on two easy blobs is 0"),
    (tasks.same_data, blobs(spoilt_test(x=lambda d: torch.rand(d.x.shape, generator=CHAOS))), "two loads gave different data"),
    (tasks.same_data, blobs(fingerprint="ab" * 32), "the pinned one abab"),
    (tasks.stated_inputs, blobs(lambda s: replace(s, aux=s.aux.rows(first(0)))), "aux is empty"),
    (tasks.stated_inputs, blobs(space=InputSpace((8, 8))), r"train has shape \(1, 8, 8\) instead of \(8, 8\)"),
    (tasks.stated_inputs, blobs(spoilt_test(x=lambda d: d.x + 1)), "test has 12 of 12 examples outside the allowed range"),
    (tasks.stated_inputs, blobs(space=InputSpace((1, 8, 8), grid=1 / 255)), "train: inputs are off the grid"),
    (tasks.stated_inputs, blobs(inputs="tokens"), "train: inputs are torch.float32"),
    (tasks.stated_inputs, blobs(spoilt_test(y=lambda d: d.y + 1)), r"test: labels outside 0\.\.1"),
    (tasks.stated_inputs, blobs(spoilt_test(y=lambda d: d.y - 1)), r"test: labels outside 0\.\.1"),
    (tasks.stated_inputs, blobs(spoilt_test(y=lambda d: d.y.int())), "test: labels are torch.int32, must be int64"),
    (tasks.disjoint, blobs(spoilt_test(ids=lambda d: d.ids // 2)), "test: some ids occur twice"),
    (tasks.disjoint, blobs(spoilt_test(ids=lambda d: d.ids.flip(0))), "test: ids must rise"),
    (tasks.disjoint, blobs(spoilt_test(ids=lambda d: d.ids - 1)), "test: ids must not be negative"),
    (tasks.architectures, blobs(classes=3), r"mlp answers 4 inputs with shape \(4, 2\)"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let items be made by name, and be forgotten after the test."""
    catalog.discover([])
    monkeypatch.setattr(registry, "_registered", registry.registered())


@pytest.mark.parametrize(
    ("check", "item", "said"), [pytest.param(*case, id=f"{case[0].__name__}: {case[2]}") for case in CAUGHT]
)
def test_a_check_catches_its_fault(check, item, said):
    registry._registered[checks.kind_of(item), item.name] = type(item)
    with pytest.raises(AssertionError, match=said):
        check(item, None)


def test_every_check_has_a_fault_that_it_catches():
    assert {check for _, _, check in _checks} == {check for check, _, _ in CAUGHT}


def test_settings_that_are_no_numbers_are_a_problem():
    (found,) = [
        f
        for f in findings(Unplain(), "defense", None)
        if f.check == "Is a frozen dataclass of plain settings"
    ]
    assert found.problem.startswith("ValueError: Out of range float values")


def test_findings_tell_every_check_of_an_item_and_its_problem_in_one_line():
    def fail(target: Target, x: Tensor, y: Tensor, eps: float) -> Tensor:
        raise RuntimeError("lost\n  the thread")

    found = list(findings(Move(fail), "attack", None))
    assert len(found) == sum(isinstance(Move(), kind) for kind, _, _ in _checks)
    assert {f.item for f in found} == {"attack move"}
    problems = {f.check: f.problem for f in found}
    assert problems["Returns the input at radius 0"] == "RuntimeError: lost the thread"
    assert problems["Declares a known vector, its goals and what it needs"] == ""


def test_a_task_whose_data_is_not_here_is_skipped_and_not_failed():
    absent = blobs(embedded=False)
    with pytest.raises(DataProblem, match="name a folder that holds it with --data-dir"):
        tasks.same_data(absent, None)
    (found,) = [f for f in findings(absent, "task", None) if f.check.startswith("Loads the same data")]
    assert (found.problem, "--data-dir" in found.skipped) == ("", True)
    tasks.same_data(absent, Path())  # with a folder it is loaded


def test_a_task_with_networks_of_its_own_may_have_several():
    both = {"mlp": Small().default, "other": Architecture(Small().default.build, Small().default.recipe)}
    tasks.architectures(blobs(architectures=both), None)

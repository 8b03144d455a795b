"""What tasks, defenses and attacks are. Items are frozen dataclasses of settings; every setting has a default."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.privacy import PrivateTraining
from firstline.benchmark.core.ref import Ref
from firstline.benchmark.core.rng import Streams, isolated
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Network, Recipe, plain_loss, train

Gradients = tuple[Tensor, ...]  # of a network's parameters, in their order

NOBODY = torch.empty(0, dtype=torch.int64)  # the ids of no row


class Item:
    """A registered thing. `name`, `version` and `tags` are set by the decorator."""

    name: ClassVar[str] = ""
    version: ClassVar[int] = 0
    tags: ClassVar[frozenset[str]] = frozenset()

    def settings(self) -> dict[str, Any]:
        """Return all settings, defaults included."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Return the text form: the name and the settings that differ from the defaults."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        changed = [(f.name, getattr(self, f.name)) for f in fields if getattr(self, f.name) != f.default]
        return str(Ref(self.name, tuple(sorted(changed))))

    @classmethod
    def facts(cls) -> dict[str, Any]:
        """Return what the planner and `firstline show` need to know, as plain data."""
        return {}


@dataclass(frozen=True)
class Architecture:
    """How to build one untrained network, and the recipe that trains it well on its task."""

    build: Callable[[], nn.Module]
    recipe: Recipe


class Task(Item, ABC):
    """Data and the truth about it.

    Class attributes: modality (image, table, text), inputs (real or tokens), classes, licence, fingerprint
    (SHA-256 of the splits; empty when it can't be known in advance), eps (the customary radius per norm),
    and space. A task whose shape is a setting makes these properties. secret names the categorical feature that
    attribute inference is after, where there is one. embedded says that the data comes with
    firstline or its dependencies: nothing is downloaded.
    """

    modality: ClassVar[str]
    inputs: ClassVar[str] = "real"
    embedded: ClassVar[bool] = False
    secret: ClassVar[str] = ""
    licence: ClassVar[str]
    fingerprint: str = ""
    classes: int
    space: InputSpace
    eps: Mapping[str, float]

    @abstractmethod
    def load(self, folder: Path | None) -> Splits:
        """Return the splits, from the user's data folder if given. Raises DataProblem, saying what to do."""

    @property
    @abstractmethod
    def architectures(self) -> Mapping[str, Architecture]:
        """The networks that are customary here, the default first."""

    @property
    def default(self) -> Architecture:
        """The first architecture."""
        return next(iter(self.architectures.values()))

    @classmethod
    def facts(cls) -> dict[str, Any]:
        """Return modality, classes, input space, licence, fingerprint and architectures."""
        task = cls()
        return {
            "modality": task.modality,
            "inputs": task.inputs,
            "classes": task.classes,
            "shape": list(task.space.shape),
            "grid": task.space.grid,
            "eps": dict(task.eps),
            "licence": task.licence,
            "embedded": task.embedded,
            "fingerprint": task.fingerprint,
            "architectures": list(task.architectures),
        }


def unwatched(system: System, steps: int, samples: int) -> None:
    """Do nothing: nobody watches."""


def unheard(ids: Tensor, scores: Tensor) -> None:
    """Do nothing: nobody keeps how suspect rows are."""


@dataclass(frozen=True)
class Context:
    """What a defense's hooks get besides the data: the task, its random streams and the device.

    A repair calls watch with the system as it is now, in evaluation mode, and the optimiser steps and the rows of
    clean data (a row counts as often as it is read) that it took since the last call. It learns nothing from that.
    `collect` calls suspect with ids (n,) and how suspect these rows are, (n,): for the record. poisoned is empty,
    except for `collect` of a control, which is told the ids of the poisoned rows. clean, for `calibrate`, are rows of
    the defender's own that no attacker touched; None outside of the benchmark's runs.
    """

    task: Task
    rng: Streams
    device: torch.device
    watch: Callable[[System, int, int], None] = unwatched
    poisoned: Tensor = NOBODY
    suspect: Callable[[Tensor, Tensor], None] = unheard
    clean: Data | None = None


HOOKS = {  # and the methods that each is made of
    "collect": ("collect",),
    "build": ("build",),
    "train": ("train", "recipe", "objective"),
    "deploy": ("deploy",),
    "calibrate": ("calibrate",),
    "recover": ("recover",),
    "transmit": ("transmit",),
    "verify": ("verify",),
}


class Defense(Item):
    """Code that acts on any of: the data, the training, the deployed system, its maintenance.

    Each hook has an identity default (train: the task's recipe); override what the defense does. inputs lists
    the kinds of input that it can handle.
    """

    inputs: ClassVar[tuple[str, ...]] = ("real", "tokens")

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return the training data that the system may see: rows of data, repaired or left out (ids kept)."""
        return data

    def build(self, task: Task) -> nn.Module:
        """Return the untrained network. Must not depend on data: it is also what stored weights are read into."""
        return task.default.build()

    def recipe(self, task: Task) -> Recipe:
        """Return how the network is trained on task. The default is the task's recipe."""
        return task.default.recipe

    def objective(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Return what training brings down on a batch x (n, *shape), y (n,), a scalar. The default is cross-entropy."""
        return plain_loss(network, x, y)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Fit module to data and return it. The default brings `objective` down by `recipe`.

        Where a change of these two says it all, many networks can be trained at once: leave this hook alone then.
        """
        return train(module, data, self.recipe(ctx.task), ctx.rng, loss=self.objective)

    def privacy(self, task: Task, rows: int) -> PrivateTraining | None:
        """Return what makes training on so many rows differentially private, or None where nothing is claimed.

        It must say all that `train` does with the data. The default claims nothing.
        """
        return None

    def deploy(self, system: System, task: Task) -> System:
        """Return system with this defense around it. Must not depend on data: see `calibrate`."""
        return system

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Fill the buffers of what `deploy` returned (thresholds, statistics) from the defender's own data."""

    def recover(self, system: System, incident: "Incident", ctx: Context) -> System:
        """Return system repaired after an incident: a copy with the same modules, and system left as it was."""
        return system

    def transmit(self, updates: Sequence[Gradients], ctx: Context) -> Gradients:
        """Return what the server of federated training sees of the first client's update.

        updates holds the gradients, one per parameter, that each client of a round would send. The default sends
        the first as it is.
        """
        return updates[0]

    def verify(self, suspect: Target, data: Data, ctx: Context) -> float | None:
        """Return how likely suspect's answers are, were it made without the system: a p-value, None for no test.

        data is what went into `collect`, and ctx.rng are its streams: what the owner drew there is drawn again. suspect
        tells labels alone. For whoever knows nothing of these draws, a p-value of at most a must come by chance
        with probability a at most. The default tests nothing.
        """
        return None

    @classmethod
    def facts(cls) -> dict[str, Any]:
        """Return the lifecycle hooks that this defense implements."""
        return {
            "hooks": [
                hook
                for hook, methods in HOOKS.items()
                if any(getattr(cls, name) is not getattr(Defense, name) for name in methods)
            ],
            "inputs": list(cls.inputs),
        }


@dataclass(frozen=True)
class Incident:
    """What a defender knows when it has to repair: clean data of its own, and the rows that it suspects.

    kept are the other rows that the system was fitted to, and before is the last system that nobody complained of,
    where there are any.
    """

    clean: Data
    suspects: Data
    kept: Data | None = None
    before: System | None = None


class Attack(Item):
    """Common to the attacks of all vectors.

    needs lists what the attack uses of: labels, scores, architecture, train, aux, defense, gradients. goals
    lists the goals of its vector that it can pursue; inputs the kinds of input that it can handle.
    """

    vector: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    goals: ClassVar[tuple[str, ...]]
    inputs: ClassVar[tuple[str, ...]] = ("real", "tokens")

    @classmethod
    def facts(cls) -> dict[str, Any]:
        """Return vector, needs, goals and kinds of input."""
        return {
            "vector": cls.vector,
            "needs": list(cls.needs),
            "goals": list(cls.goals),
            "inputs": list(cls.inputs),
        }


class Evasion(Attack, ABC):
    """Moves inputs so that the system errs."""

    vector = "evasion"
    inputs = ("real",)

    @abstractmethod
    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved within region so that labels y (n,) fit it badly.

        region.eps holds a radius per example. Row i of x is example i of the target's meter: pass the row
        numbers on when asking about fewer rows, or narrow target and region with `keep`. What comes back is
        the point that fooled the system where one was met (any valid iterate counts), else the best try.
        """


class MinimalNorm(Evasion, ABC):
    """Looks for the closest input that the system gets wrong, whatever the radius."""

    @abstractmethod
    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return for each row of x (n, *shape) the closest point met that fools the system, x where none was.

        Points are valid inputs: in the box and on the grid. Close is meant in region.norm; region.eps is the
        radius that the threat model asks about, and no limit.
        """

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the closest point that fools the system where it lies within region, else x."""
        found = self.minimise(target, x, y, region, rng)
        return torch.where(column(region.holds(found), x), found, x)


@dataclass(frozen=True)
class PoisonedData:
    """A poisoned training set, the ids of the rows that were changed or added, and for backdoors the trigger.

    trigger puts the backdoor's pattern on inputs (n, *shape); target_class is the label that it should bring.
    """

    data: Data
    poisoned: Tensor
    trigger: Callable[[Tensor], Tensor] | None = None
    target_class: int | None = None


class Poisoning(Attack, ABC):
    """Changes training data."""

    vector = "poisoning"

    @abstractmethod
    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train, which is the share that the attacker holds, with at most budget rows changed or added.

        Changed rows keep their ids; added rows have negative ids. No row may be taken away.
        """


class Extraction(Attack, ABC):
    """Copies the system through its answers."""

    vector = "extraction"

    @abstractmethod
    def extract(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> nn.Module:
        """Return a copy of the system: a module in evaluation mode that maps inputs (n, *shape) to logits (n, classes).

        Every query is charged to one budget for all; target.left says what of it is there. aux is None where the
        threat grants none. Random draws come from rng alone.
        """


@dataclass(frozen=True)
class Shadows:
    """What an attacker who knows the architecture fits itself: k systems, each to half of the rows.

    They are defended as the target is where the threat grants the defense, and not at all where it doesn't. member
    (k, n) says which candidates each was fitted to; logits (k, n, classes) are its answers to them. population are m
    rows that no system was fitted to, and population_logits (k, m, classes) the answers to those.
    """

    systems: Sequence[System]
    member: Tensor
    logits: Tensor
    population: Data
    population_logits: Tensor


class Membership(Attack, ABC):
    """Tells training examples from others."""

    vector = "membership"

    @abstractmethod
    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return a score (n,) for each candidate; the higher, the more likely it was trained on.

        shadows is None where the attack doesn't need the architecture. Scores must compare from target to target:
        thresholds are set on those of other systems.
        """


class Inversion(Attack, ABC):
    """Rebuilds what the training data looked like."""

    vector = "inversion"

    @abstractmethod
    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        """Return reconstructions (classes, *shape), one per class, inside the input space.

        Every query, and every gradient, is charged to one counter for all. aux is None where the threat grants none.
        """


class AttributeInference(Attack, ABC):
    """Finds out a feature of people whose other features and label it knows."""

    vector = "inversion"

    @abstractmethod
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
        """Return scores (n, values), higher for values of the secret feature that are more likely.

        options (n, values, features) are the n rows with each value of the feature in turn, y (n,) their labels. aux are
        rows of the attacker's own, in which the feature is there. Queries are charged to one counter for all.
        """


@dataclass(frozen=True)
class Update:
    """What a server has: the network that it sent out, the gradients that came back, and of how many rows they are."""

    network: nn.Module
    gradients: Gradients
    batch: int


class GradientLeakage(Attack, ABC):
    """Rebuilds a client's batch from its update in federated training."""

    vector = "inversion"

    @abstractmethod
    def rebuild(
        self, update: Update, space: InputSpace, classes: int, aux: Data | None, rng: Streams
    ) -> tuple[Tensor, Tensor]:
        """Return inputs (batch, *shape), inside the input space, and labels (batch,), in any order."""


def initialise(build: Callable[[], nn.Module], rng: Streams) -> nn.Module:
    """Return a freshly built network whose initial weights come from rng alone."""
    with isolated(rng.integer("init")):
        return build()

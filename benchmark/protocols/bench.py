"""What a protocol works with, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Attack, Incident, PoisonedData, Task, initialise
from firstline.benchmark.core.data import Data, Splits
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.outcome import Outcome
from firstline.benchmark.core.record import Gate, Metric
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import INVALID, Response, System
from firstline.benchmark.core.target import Target, asked
from firstline.benchmark.core.threat import Threat

BATCH = 512  # inputs per call of a system
CLEAN_SHARE, CLEAN_ROWS = (
    0.05,
    100,
)  # clean rows of the defender, as a share of the training set's; at least so many


class Served(Protocol):
    """A fitted system: in this process for the attack, and behind a door for the score."""

    system: System
    kept: Tensor
    suspicion: Tensor | None  # how suspect each training row was to the filters, (n,), NaN where none said
    memo: dict[str, dict[str, float]]  # figures about the system that its cells share

    def score(self, x: Tensor, rng: Streams) -> Tensor:
        """Return the answers (n,) int64 to x (n, *shape), asked blindly: shuffled, without labels."""


class Sight(NamedTuple):
    """How a system does on the test examples: accuracy, and for backdoors the attack's success and what is held."""

    accuracy: float
    success: float | None
    robust: float | None


class Point(NamedTuple):
    """What was seen of a system under repair after so many optimiser steps and rows of clean data in all."""

    steps: int
    samples: int
    seen: Sight


Look = Callable[[System], Sight]


@dataclass(frozen=True)
class Bank:
    """Systems in complementary pairs: 2p and 2p + 1 are fitted to two halves of the same rows.

    rows (k, m) are the positions in data of what each was fitted to; canary (n,) says which rows of data got a wrong
    label first. seconds is the CPU time that fitting one took. answers holds by name, once somebody asked, logits
    (k, n, classes) and labels (k, n).
    """

    systems: list[System]
    data: Data
    rows: Tensor
    canary: Tensor
    seconds: float = 0.0
    answers: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    memo: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mended:
    """A repaired system, and what was seen of it on the way."""

    served: Served
    trace: list[Point]


@dataclass(frozen=True)
class Bench:
    """One cell, ready to run. fit returns the system fitted to clean data, or to poisoned data.

    repair returns a served system as the stack repairs it; look is how it is seen on the way. bank returns the systems
    of membership inference, with the stack's defense or without any.
    """

    task: Task
    splits: Splits
    stack: Stack
    attack: Attack
    threat: Threat
    rng: Streams
    device: torch.device
    examples: int
    fit: Callable[[PoisonedData | None], Served]
    repair: Callable[[Served, Incident, Look], Mended]
    stage: Callable[[str], None]
    bank: Callable[[bool], Bank] | None = None

    def target(self, system: System, examples: int | None, build_rng: Streams) -> Target:
        """Return the attack's door to system."""
        threat, train = self.threat, self.splits.train
        share = torch.randperm(len(train), generator=self.rng.torch("train share"))
        held = share[: round(threat.train * len(train))].sort().values
        return Target(
            system,
            threat,
            space=self.task.space,
            classes=self.task.classes,
            rng=self.rng.child("target"),
            examples=examples,
            build=lambda: initialise(self.task.default.build, build_rng.child("architecture")),
            train=train.rows(held),
            aux=self.splits.aux,
            defense=str(self.stack),
        )

    def watched(self, system: System, x: Tensor) -> Response:
        """Return the answers to x (n, *shape) in the attack's own process, of a system that may know it is attacked."""
        parts = (part.to(self.device, copy=True) for part in x.split(BATCH))
        return asked(system.respond, parts, self.rng.torch("watched"), self.task.classes)

    def draw(self, name: str, available: int, count: int) -> Tensor:
        """Return count of the first `available` numbers, as `drawn` does."""
        return drawn(self.rng, name, available, count)


def clean_rows(splits: Splits, rng: Streams) -> Data:
    """Return the defender's own clean rows: of the split aux, which no poisoner sees, and the same for all defenses."""
    count = max(CLEAN_ROWS, round(CLEAN_SHARE * len(splits.train)))
    return splits.aux.rows(drawn(rng, "clean rows of the defender", len(splits.aux), count))


def drawn(rng: Streams, name: str, available: int, count: int) -> Tensor:
    """Return count of the first `available` numbers, drawn without replacement and sorted.

    The stream names no defense: all systems meet the same examples.
    """
    return torch.randperm(available, generator=rng.torch("draw", name))[:count].sort().values


@dataclass(frozen=True)
class Measured:
    """What a protocol found: outcomes, metrics, curves, diagnostics, the gate's verdict and the attack's cost.

    unresolved holds, of each measure for which the sample is too small, the ends between which it lies. picture is a
    PNG file for people to look at; it may show training data, and is no part of the record.
    """

    outcome: Outcome
    metrics: dict[str, Metric]
    unresolved: dict[str, tuple[float, float]] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    gate: Gate = field(default_factory=lambda: Gate(verdict="pass", reasons=[]))
    queries: int = 0
    gradients: int = 0
    picture: bytes | None = None


def answered(answers: Tensor) -> Tensor:
    """Return answers (n,) to clean inputs. Raises ContractBroken where none is a number: that is no system."""
    if len(answers) and bool((answers == INVALID).all()):
        raise ContractBroken("the system answers every clean input with NaN or infinite logits")
    return answers

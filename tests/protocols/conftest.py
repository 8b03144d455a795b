"""Benches built by hand: a served system that answers in this process, and hooks to look into it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Attack, Defense, Incident, PoisonedData, Task
from firstline.benchmark.core.data import Splits
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import System
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols.bench import Bench, Look, Mended
from firstline.benchmark.protocols.recovery import traced

CPU = torch.device("cpu")


@dataclass
class Fake:
    """A fitted system that is scored where it stands; asked holds the inputs that it was scored on."""

    system: System
    kept: Tensor
    answer: Callable[[Tensor], Tensor] | None = None
    asked: list[Tensor] = field(default_factory=list)
    suspicion: Tensor | None = None
    memo: dict[str, dict[str, float]] = field(default_factory=dict)

    def score(self, x: Tensor, rng: Streams) -> Tensor:
        self.asked.append(x.clone())
        if self.answer is not None:
            return self.answer(x)
        with torch.no_grad():
            return self.system.respond(x, rng.torch("noise")).labels


@dataclass
class Made:
    """A bench, the stages that it went through, what was fitted to what, and what there was to repair with."""

    bench: Bench
    served: Fake
    stages: list[str]
    fitted_to: list[PoisonedData | None]
    incidents: list[Incident]


def make(
    attack: Attack,
    threat: str,
    *,
    system: System | None = None,
    task: Task | None = None,
    splits: Splits | None = None,
    kept: Tensor | None = None,
    answer: Callable[[Tensor], Tensor] | None = None,
    fit: Callable[[PoisonedData | None], Any] | None = None,
    examples: int = 48,
    seed: int = 0,
    layers: tuple[Defense, ...] = (),
) -> Made:
    """Return a bench on the oracle task; its served system is the best classifier unless another is given."""
    task = task or Blobs(train=64, test=64)
    splits = splits or task.load(None)
    served = Fake(system or Blobs().best(), splits.train.ids if kept is None else kept, answer)
    stages: list[str] = []
    fitted_to: list[PoisonedData | None] = []
    incidents: list[Incident] = []

    def fitted(poisoned: PoisonedData | None) -> Any:
        stages.append("fit")
        fitted_to.append(poisoned)
        return fit(poisoned) if fit else served

    def repaired(fit: Fake, incident: Incident, look: Look) -> Mended:
        trace, watch = traced(look)
        found = bench.stack.repair(task, fit.system, incident, bench.rng.child("repair"), CPU, watch)
        incidents.append(incident)
        return Mended(Fake(found.system, fit.kept), trace)

    bench = Bench(
        task=task,
        splits=splits,
        stack=Stack(layers),
        attack=attack,
        threat=Threat.parse(threat),
        rng=Streams(seed).child("blobs"),
        device=CPU,
        examples=examples,
        fit=fitted,
        repair=repaired,
        stage=stages.append,
    )
    return Made(bench, served, stages, fitted_to, incidents)


@pytest.fixture(name="make")
def _make() -> Callable[..., Made]:
    return make


@pytest.fixture
def fake() -> type[Fake]:
    return Fake

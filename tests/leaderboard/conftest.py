"""Records made by hand, and the per-example arrays that would lie beside them."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from firstline.benchmark.core.record import (
    Environment,
    Failure,
    Gate,
    Isolation,
    ItemUse,
    Metric,
    Provenance,
    Record,
)


def item(text: str) -> ItemUse:
    return ItemUse(text=text, name=text.partition("(")[0], version=1, settings={}, code="c0de")


def metric(value: float, *, better: str = "higher", unit: str = "share", half: float = 0.02) -> Metric:
    return Metric(
        value=value,
        lo=value - half,
        hi=value + half,
        n=100,
        method="wilson" if 0 <= value <= 1 else "",
        unit=unit,
        better=better,
    )


def make(
    defense: str = "none",
    attack: str = "pgd",
    seed: int = 0,
    *,
    threat: str = "evasion/white/linf:0.1",
    task: str = "digits",
    gate: str | dict[str, Any] = "pass",
    ended: str = "2026-01-01T00:00:01Z",
    **more: Any,
) -> Record:
    """Return a record. Its vector is that of the threat; the key follows from the other arguments."""
    identity = repr((defense, attack, seed, threat, task, ended, sorted(more.items(), key=str)))
    key = hashlib.sha256(identity.encode()).hexdigest()
    fields: dict[str, Any] = {
        "key": key,
        "preimage": {"seed": seed},
        "stages": {"fit": f"fit of {defense} under {seed}"},
        "suite": "smoke",
        "task": item(task),
        "defense": [item(layer) for layer in defense.split("+")],
        "attack": item(attack),
        "threat": threat,
        "vector": threat.partition("/")[0],
        "seed": seed,
        "status": "ok",
        "gate": gate
        if isinstance(gate, dict)
        else Gate(verdict=gate, reasons=[] if gate == "pass" else ["steps: more steps still help"]),
        "cost": {"fit_seconds": 1.5},
        "environment": Environment(
            python="3.11", platform="linux", cpu="some", device="cpu", threads=1, packages={}
        ),
        "provenance": Provenance(firstline="0.1.0", commit="abc", dirty=False, started=ended, ended=ended),
        "isolation": Isolation(blind=False, backend="none"),
    }
    return Record.model_validate(fields | more)


def failed(*args: Any, **more: Any) -> Record:
    error = Failure(kind="attack", type="RuntimeError", message="boom\nTraceback", stage="craft")
    return make(*args, status="failed", error=error, **more)


class Bench:
    """Evasion records with their arrays; call it as the leaderboard's `outcomes`."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._arrays: dict[str, Mapping[str, Any] | Exception] = {}

    def __call__(self, record: Record) -> Mapping[str, Any]:
        found = self._arrays[record.key]
        if isinstance(found, Exception):
            raise found
        return found

    def put(self, record: Record, arrays: Mapping[str, Any] | Exception) -> None:
        self.records.append(record)
        self._arrays[record.key] = arrays

    def add(
        self, defense: str, attack: str, holds: Any, *, seed: int = 0, clean: Any = None, **more: Any
    ) -> Record:
        """Add a cell: right on clean inputs where clean says (by default all), held where holds says."""
        held = np.asarray(holds, bool)
        right = np.ones(held.size, bool) if clean is None else np.asarray(clean, bool)
        arrays = {
            "ids": np.arange(held.size),
            "label": np.ones(held.size, np.int64),
            "clean_answer": np.where(right, 1, 0),
            "adversarial_answer": np.where(held, 1, 0),
        }
        record = make(defense, attack, seed, **more)
        self.put(record, arrays)
        return record

    def add_metrics(self, defense: str, attack: str, seed: int = 0, **more: Any) -> None:
        """Add a cell that has metrics and no arrays."""
        self.put(make(defense, attack, seed, **more), {})


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def new() -> Callable[..., Record]:
    """Return the record factory."""
    return make


@pytest.fixture
def new_failed() -> Callable[..., Record]:
    return failed


@pytest.fixture
def new_metric() -> Callable[..., Metric]:
    return metric


@pytest.fixture(scope="session")
def bench_of() -> type[Bench]:
    """Return the class of benches, for records that several tests share."""
    return Bench


@pytest.fixture(scope="session")
def new_metric_of() -> Callable[..., Metric]:
    """Return what makes metrics, for records that several tests share."""
    return metric

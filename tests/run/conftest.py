"""Cells and records made by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstline.benchmark.core.record import Cost, Failure, Metric, Record
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run.keys import Cell, Use
from firstline.benchmark.run.recording import Job, make_record


def use(name: str, **settings: Any) -> Use:
    inside = ", ".join(f"{k}={v!r}" for k, v in settings.items())
    return Use(f"{name}({inside})" if inside else name, name, 1, settings, f"code of {name}")


def cell(
    defense: tuple[Use, ...] = (use("none"),),
    attack: Use | None = None,
    threat: str = "evasion/white/linf:0.1",
    seed: int = 0,
) -> Cell:
    attack = use("pgd", steps=40, stride=0.1) if attack is None else attack
    threats = Threat.parse(threat)
    return Cell("smoke@1", use("blobs", dim=8), "f" * 64, defense, attack, threats, seed, 64, "cpu")


def record(cell: Cell, *, fails: str = "", value: float = 0.5) -> Record:
    """Return the record of a cell; fails is the kind of its failure."""
    if fails:
        error = Failure(kind=fails, type="RuntimeError", message="boom", stage="craft")
        return make_record(cell, Job(Path("unused"), None), "2026-01-01T00:00:00Z", Cost(), error=error)
    found = Metric(value=value, n=64, method="", unit="share", better="higher")
    cost = Cost(fit_seconds=3, craft_seconds=1.5, score_seconds=0.5)
    job = Job(Path("unused"), None)
    return make_record(cell, job, "2026-01-01T00:00:00Z", cost, metrics={"robust_accuracy": found})


@pytest.fixture(scope="session")
def new_use() -> Callable[..., Use]:
    return use


@pytest.fixture(scope="session")
def new_cell() -> Callable[..., Cell]:
    return cell


@pytest.fixture(scope="session")
def new_record() -> Callable[..., Record]:
    return record

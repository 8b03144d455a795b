"""A suite, planned and run: what is reused, what runs, and in which order."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstline.benchmark.run import keys
from firstline.benchmark.run.keys import Cell
from firstline.benchmark.run.matrix import Matrix
from firstline.benchmark.run.store import Store

if TYPE_CHECKING:
    from firstline.benchmark.core.record import Record
    from firstline.benchmark.run.pool import Event, Executor


# Failures that are no fault of the items: the machine's, or data that was not there. They run again by themselves.
AGAIN = ("infra", "task")


@dataclass
class Plan:
    """What a run will do. groups are the cells to run, grouped by system; reused have a record already."""

    matrix: Matrix
    groups: list[list[Cell]] = field(default_factory=list)
    reused: list[Cell] = field(default_factory=list)
    failed: list[Cell] = field(default_factory=list)
    fits: int = 0

    @property
    def to_run(self) -> int:
        """How many cells will run."""
        return sum(map(len, self.groups))


def make_plan(matrix: Matrix, store: Store, *, blind: bool = True, retry: bool = False) -> Plan:
    """Return what there is to do. A failed cell counts as finished, unless its kind is in AGAIN or retry is set."""
    plan = Plan(matrix)
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    fits = set()
    for cell in matrix.cells:
        old = store.glance(keys.key(keys.cell_preimage(cell, blind=blind)))
        if old is not None and old["status"] == "ok":
            plan.reused.append(cell)
            continue
        if old is not None and not retry and (old.get("error") or {}).get("kind") not in AGAIN:
            plan.reused.append(cell)
            plan.failed.append(cell)
            continue
        groups.setdefault((cell.task.text, cell.defense_text, cell.seed), []).append(cell)
        fits |= {key for key in map(keys.key, _fits(cell)) if not store.has_fit(key)}
    plan.groups, plan.fits = list(groups.values()), len(fits)
    return plan


def _fits(cell: Cell) -> list[dict[str, Any]]:
    """The preimages of all that a cell fits."""
    if cell.threat.vector == "membership":
        return keys.pair_preimages(cell)
    poisoned = {False, cell.threat.vector == "poisoning"}
    return [keys.fit_preimage(cell, poisoned=one) for one in sorted(poisoned)]


def execute(
    plan: Plan,
    executor: "Executor",
    *,
    root: Path,
    folder: Path | None,
    blind: bool,
    tell: Callable[["Event"], None],
) -> "list[Record]":
    """Run the plan and return the new records. Every record is on disk as soon as its cell ends."""
    from firstline.benchmark.run.estimate import add_timings
    from firstline.benchmark.run.pool import Done
    from firstline.benchmark.run.recording import Job

    store = Store(root)
    store.prepare()
    fresh: list[Record] = []

    def heard(event: "Event") -> None:
        if isinstance(event, Done):
            fresh.append(event.record)
        tell(event)

    try:
        executor.run(plan.groups, Job(root, folder, blind), heard)
    finally:
        add_timings(root, fresh)
        log_finished(plan, store, fresh, blind=blind)
    return fresh


def log_finished(plan: Plan, store: Store, fresh: "Iterable[Record]", *, blind: bool) -> None:
    """Chain the plan's finished records into the log, those of an earlier, killed run included."""
    done = {keys.key(keys.cell_preimage(cell, blind=blind)) for cell in plan.matrix.cells}
    there = sorted(key for key in done if store.record_path(key).is_file())
    store.log(there, rewritten={record.key for record in fresh})


def workers(jobs: int, device: str) -> int:
    """Return how many worker processes to start: jobs, or one per core, and one for a GPU."""
    if jobs:
        return jobs
    return (
        1
        if device == "cuda"
        else len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )

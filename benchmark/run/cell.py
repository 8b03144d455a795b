"""One group of cells, from task to records: fit once, attack many times. Runs in a worker process."""

import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from firstline.benchmark.core.catalog import create
from firstline.benchmark.core.contracts import NOBODY, Attack, Incident, PoisonedData, Task
from firstline.benchmark.core.data import Splits
from firstline.benchmark.core.errors import BudgetExhausted, DataProblem, FirstlineError, SystemFailed
from firstline.benchmark.core.record import Cost, Failure, Record
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import System
from firstline.benchmark.protocols.bench import (
    Bank,
    Bench,
    Look,
    Measured,
    Mended,
    Point,
    Served,
    Sight,
    clean_rows,
)
from firstline.benchmark.protocols.membership import halves, with_canaries
from firstline.benchmark.protocols.recovery import traced
from firstline.benchmark.protocols.table import PROTOCOLS
from firstline.benchmark.run import keys
from firstline.benchmark.run.environment import now, peak_memory_mb, return_free_memory
from firstline.benchmark.run.keys import Cell
from firstline.benchmark.run.matrix import undefended as undefended_layers
from firstline.benchmark.run.recording import Job, make_record
from firstline.benchmark.run.scorer import BlindScorer, Blueprint, Nursery, answers, scoring
from firstline.benchmark.run.store import Damaged, Store, Unwritable

Kind = Literal["attack", "defense", "task", "budget", "infra"]
_BLAME: dict[str, Kind] = {
    "load": "task",
    "fit": "defense",
    "repair": "defense",
    "poison": "attack",
    "craft": "attack",
    "gate": "defense",
    "verify": "defense",
    "score": "defense",
    "measure": "infra",
}


@dataclass
class Fit:
    """A fitted or repaired system in this process, and its scorer."""

    system: System
    kept: Tensor
    seconds: float
    classes: int
    device: str
    scorer: BlindScorer | None
    suspicion: Tensor | None = None
    memo: dict[str, dict[str, float]] = field(default_factory=dict)

    def score(self, x: Tensor, rng: Streams) -> Tensor:
        """Return the answers (n,) to x (n, *shape)."""
        if self.scorer is not None:
            return self.scorer.score(x, self.classes, rng)
        return answers(self.system, x.cpu(), self.classes, rng, self.device)


@dataclass
class Group:
    """The cells of one task, defense and seed, while they run."""

    job: Job
    store: Store
    device: torch.device
    nursery: Nursery | None
    splits: Splits | None = None
    clean: Fit | None = None
    failed: BaseException | None = None
    banks: dict[tuple[bool, int, int], Bank] = field(default_factory=dict)
    open: ExitStack = field(default_factory=ExitStack)


def run_group(
    cells: Iterable[Cell],
    job: Job,
    nursery: Nursery | None,
    starting: Callable[[Cell], None],
    done: Callable[[Cell, Record], None],
    stopping: Callable[[], bool],
) -> None:
    """Run cells of one task, defense and seed; every record is on disk before done is called.

    nursery is where scoring processes come from; without one, cells are scored in this process.

    Raises Unwritable where results can't be saved. Anything else that goes wrong is a failed record.
    """
    torch.set_num_threads(job.threads)
    group: Group | None = None
    try:
        for cell in cells:
            if stopping():
                return
            starting(cell)
            group = group or Group(job, Store(job.root), torch.device(cell.device), nursery)
            done(cell, run_cell(cell, group))
            return_free_memory()
    finally:
        if group is not None:
            group.open.close()


@dataclass
class _Progress:
    """How far a cell has come: the stage that is blamed for an error, and the seconds of each."""

    device: str
    stage: str = "load"
    since: tuple[float, float] = field(default_factory=lambda: (process_time(), perf_counter()))
    seconds: dict[str, float] = field(default_factory=dict)

    def enter(self, stage: str) -> None:
        """Close the present stage and open another. Work in another process or on a GPU is timed by the wall."""
        here = process_time(), perf_counter()
        clock = 1 if self.stage == "score" or self.device != "cpu" else 0
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + here[clock] - self.since[clock]
        self.stage, self.since = stage, here


def run_cell(cell: Cell, group: Group) -> Record:
    """Run one cell and write its record, which is also returned. An error becomes a failed record."""
    progress, started = _Progress(cell.device), now()
    made: dict[str, Fit | Bank] = {}
    measured: Measured | None = None
    failure: Failure | None = None
    with ExitStack() as temporary:
        try:
            measured = _measure(cell, group, progress, temporary, made)
        except Unwritable:
            raise
        except (Exception, SystemExit) as error:
            failure = describe(error, progress.stage)
    progress.enter("end")
    cost = Cost(
        fit_seconds=made["fit"].seconds if "fit" in made else 0.0,
        repair_seconds=made["repair"].seconds if "repair" in made else 0.0,
        craft_seconds=progress.seconds.get("craft", 0.0) + progress.seconds.get("poison", 0.0),
        score_seconds=progress.seconds.get("score", 0.0),
        queries=measured.queries if measured else 0,
        gradients=measured.gradients if measured else 0,
        peak_memory_mb=peak_memory_mb(),
    )
    found: dict[str, Any] = {}
    if measured is not None:
        found = {
            "metrics": measured.metrics,
            "unresolved": measured.unresolved,
            "curves": measured.curves,
            "diagnostics": measured.diagnostics,
            "gate": measured.gate,
        }
    try:
        record = make_record(cell, group.job, started, cost, error=failure, **found)
    except ValidationError as error:  # numbers that can't be true: an identity of the protocol is broken
        record = make_record(cell, group.job, started, cost, error=describe(error, "measure"))
        measured = None
    if measured is None:
        return group.store.write(record, None)
    return group.store.write(record, measured.outcome.arrays(), measured.picture)


def describe(error: BaseException, stage: str) -> Failure:
    """Return an error as a record tells it: one line, with the place for errors that nobody foresaw."""
    kind = _BLAME.get(stage, "infra")
    if isinstance(error, SystemFailed):
        kind = "defense"
    elif isinstance(error, BudgetExhausted):
        kind = "budget"
    elif isinstance(error, DataProblem):
        kind = "task"
    elif isinstance(error, MemoryError | torch.OutOfMemoryError):
        kind = "infra"
    message = " ".join(str(error).split()) or "no message"
    cause = error.__cause__ if isinstance(error, SystemFailed) and error.__cause__ else error
    frames = traceback.extract_tb(cause.__traceback__)
    if frames and (cause is not error or not isinstance(error, FirstlineError)):
        message += f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return Failure(kind=kind, type=type(error).__name__, message=message[:500], stage=stage)


def _measure(
    cell: Cell, group: Group, progress: _Progress, temporary: ExitStack, made: dict[str, Fit | Bank]
) -> Measured:
    blueprint = Blueprint(cell.task, cell.defense, cell.device)
    task, stack = blueprint.items()
    attack = create("attack", cell.attack.name, cell.attack.settings)
    assert isinstance(attack, Attack)
    if group.splits is None:
        group.splits = _load(task, cell, group.job.folder)
    splits = group.splits
    rng = Streams(cell.seed).child(task.name)

    def fit(poisoned: PoisonedData | None) -> Fit:
        progress.enter("fit")
        made["fit"] = found = _fit(cell, group, task, stack, splits, poisoned, rng, blueprint, temporary)
        return found

    def repair(served: Served, incident: Incident, look: Look) -> Mended:
        found, trace = _repair(cell, group, task, stack, served, incident, look, rng, blueprint, temporary)
        made["repair"] = found
        return Mended(found, trace)

    def bank(defended: bool) -> Bank:
        progress.enter("fit")
        found = _bank(cell, group, task, stack if defended else None, splits, rng, blueprint)
        if defended:
            made["fit"] = found
        return found

    bench = Bench(
        task=task,
        splits=splits,
        stack=stack,
        attack=attack,
        threat=cell.threat,
        rng=rng,
        device=group.device,
        examples=cell.examples,
        fit=fit,
        repair=repair,
        stage=progress.enter,
        bank=bank,
    )
    return PROTOCOLS[cell.threat.vector](bench)


def _load(task: Task, cell: Cell, folder: Path | None) -> Splits:
    splits = task.load(folder)
    # Pinned data was verified by the task itself; here the question is whether it changed since the plan.
    if not task.fingerprint and splits.fingerprint() != cell.fingerprint:
        raise DataProblem(f"the data of {task} changed since the run was planned; run the command again")
    return splits


def _fit(
    cell: Cell,
    group: Group,
    task: Task,
    stack: Stack,
    splits: Splits,
    poisoned: PoisonedData | None,
    rng: Streams,
    blueprint: Blueprint,
    temporary: ExitStack,
) -> Fit:
    if poisoned is None and group.failed is not None:
        raise group.failed  # the same fit failed for an earlier attack: don't try again for each
    if poisoned is None and group.clean is not None:
        return group.clean
    key = keys.key(keys.fit_preimage(cell, poisoned=poisoned is not None))
    try:
        state, facts = _stored(group.store, key)
        if not state:
            given = poisoned or PoisonedData(splits.train, NOBODY)
            own = clean_rows(splits, rng)
            fitted = stack.fit(task, given.data, rng.child("fit"), group.device, given.poisoned, own)
            state = fitted.system.state_dict()
            told = None if fitted.suspicion is None else fitted.suspicion.tolist()
            facts = {"seconds": fitted.seconds, "kept": fitted.kept.tolist(), "suspicion": told}
            group.store.save_fit(key, state, facts)
        # Always rebuilt, fresh or stored: a second run meets the very same system.
        system = blueprint.rebuild(state)
    except (Exception, SystemExit) as error:
        if poisoned is None:
            group.failed = error
        raise
    kept = torch.tensor(facts["kept"], dtype=torch.int64)
    holder = group.open if poisoned is None else temporary
    scorer = holder.enter_context(scoring(group.nursery, blueprint, state)) if group.nursery else None
    told = facts.get("suspicion")
    suspicion = None if told is None else torch.tensor(told, dtype=torch.float64)
    found = Fit(system, kept, facts["seconds"], task.classes, cell.device, scorer, suspicion)
    if poisoned is None:
        group.clean = found
    return found


def _repair(
    cell: Cell,
    group: Group,
    task: Task,
    stack: Stack,
    served: Served,
    incident: Incident,
    look: Look,
    rng: Streams,
    blueprint: Blueprint,
    temporary: ExitStack,
) -> tuple[Fit, list[Point]]:
    key = keys.key(keys.repair_preimage(cell))
    state, facts = _stored(group.store, key)
    if not state:
        trace, watch = traced(look)
        repaired = stack.repair(task, served.system, incident, rng.child("repair"), group.device, watch)
        state = repaired.system.state_dict()
        facts = {"seconds": repaired.seconds, "trace": trace}
        group.store.save_fit(key, state, facts)
    trace = [Point(steps, samples, Sight(*seen)) for steps, samples, seen in facts["trace"]]
    system = blueprint.rebuild(state)
    scorer = temporary.enter_context(scoring(group.nursery, blueprint, state)) if group.nursery else None
    return Fit(system, served.kept, facts["seconds"], task.classes, cell.device, scorer), trace


def _bank(
    cell: Cell,
    group: Group,
    task: Task,
    stack: Stack | None,
    splits: Splits,
    rng: Streams,
    blueprint: Blueprint,
) -> Bank:
    """The bank of stack, or of no defense: pair by pair as stored, what is missing fitted all at once."""
    undefended = () if stack is not None else undefended_layers()
    plan = blueprint if stack is not None else replace(blueprint, defense=undefended)
    name = (stack is not None, cell.threat.shadows, cell.threat.canaries)
    if name in group.banks:
        return group.banks[name]
    data, canary = with_canaries(splits.train, task.classes, cell.threat.canaries, rng)
    rows = halves(len(data), cell.threat.shadows, rng)
    wanted = [keys.key(preimage) for preimage in keys.pair_preimages(cell, undefended)]
    found = [_stored(group.store, key) for key in wanted]
    if missing := [pair for pair, (state, _) in enumerate(found) if not state]:
        members = [number for pair in missing for number in (2 * pair, 2 * pair + 1)]
        start = process_time()
        made = plan.items()[1].fit_many(
            task,
            data,
            rows[members],
            [rng.child("fit", "shadow", str(number)) for number in members],
            group.device,
            clean_rows(splits, rng),
        )
        each = (process_time() - start) / len(members)
        for pair, two in zip(missing, zip(made[::2], made[1::2], strict=True), strict=True):
            state = {f"{i}.{k}": v for i, one in enumerate(two) for k, v in one.state_dict().items()}
            group.store.save_fit(wanted[pair], state, {"seconds": each})
            found[pair] = state, {"seconds": each}
    systems = [
        plan.rebuild({k[2:]: v for k, v in state.items() if k[0] == half})
        for state, _ in found
        for half in ("0", "1")
    ]
    seconds = sum(facts["seconds"] for _, facts in found) / len(found)
    group.banks[name] = Bank(systems, data, rows, canary, seconds)
    return group.banks[name]


def _stored(store: Store, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The stored system, or nothing where there is none or it is damaged."""
    with suppress(Damaged):
        if store.has_fit(key):
            return store.load_fit(key)
    return {}, {}

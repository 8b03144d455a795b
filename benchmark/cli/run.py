"""firstline run: run what a suite names and has no record yet."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from firstline.benchmark.cli import options
from firstline.benchmark.cli.finish import build_board, mirror, records_of, summarise, warn
from firstline.benchmark.cli.options import RESULTS, Json
from firstline.benchmark.cli.plan import headline
from firstline.benchmark.cli.show_text import count, duration, say, say_json
from firstline.benchmark.core import catalog
from firstline.benchmark.run import keys
from firstline.benchmark.run.estimate import estimate, read_timings
from firstline.benchmark.run.matrix import expand
from firstline.benchmark.run.runner import Plan, execute, log_finished, make_plan, workers
from firstline.benchmark.run.store import Store
from firstline.benchmark.run.suite import find_suite

if TYPE_CHECKING:
    from firstline.benchmark.core.record import Record
    from firstline.benchmark.run.pool import Event, Executor


def run(
    suite: options.Suite = "quick",
    task: options.Task = None,
    defense: options.Defense = None,
    attack: options.Attack = None,
    threat: options.Threat = None,
    seed: options.Seeds = None,
    exclude: options.Exclude = None,
    results: options.Results = RESULTS,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    jobs: options.Jobs = 0,
    not_blind: options.NotBlind = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed cells again.")] = False,
    board: Annotated[bool, typer.Option(help="Build the leaderboard afterwards.")] = True,
    mlflow: options.Mlflow = "",
    no_mlflow: options.NoMlflow = False,
    json: Json = False,
) -> None:
    """Run the cells of a suite that have no record yet; the same command again resumes and reuses.

    Ctrl-C finishes the cells under way and stops; a second Ctrl-C stops at once. Either way nothing that was
    finished is lost. Exits with 1 if a cell failed.
    """
    from firstline.benchmark.run.pool import LocalPool

    began = monotonic()
    chosen = options.selection(task, defense, attack, threat, seed, exclude)
    wanted, where, store = find_suite(suite), keys.resolve_device(device), Store(results)
    plan = make_plan(
        expand(wanted, catalog.load(), chosen, where, data_dir), store, blind=not not_blind, retry=retry
    )
    number = workers(jobs, where)
    if not json:
        say(
            f"{wanted.label} on {where}, {count(number, 'worker')}: {headline(plan, *estimate(plan.groups, read_timings(results), number))}"
        )
    stopped = run_plan(plan, LocalPool(number), results, data_dir, blind=not not_blind, quiet=json)
    records = records_of(store, plan.matrix.cells, blind=not not_blind)
    failed = [record for record in records if record.status == "failed"]
    if json:
        say_json([record.model_dump(mode="json") for record in records])
    else:
        say()
        summarise(store, records)
        _tell_failures(failed)
        say(
            f"{count(len(records), 'record')} of {count(len(plan.matrix.cells), 'cell')} in {results / 'records'}"
        )
        if board:
            say(f"leaderboard  {build_board(store, records, results / 'board', 'firstline')}")
    if not no_mlflow:
        mirror(store, records, mlflow, quiet=json)
    if not json:
        say(f"done in {duration(monotonic() - began)}")
    if stopped:
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def run_plan(
    plan: Plan, executor: "Executor", results: Path, folder: Path | None, *, blind: bool, quiet: bool
) -> bool:
    """Run a plan under a progress bar; return whether it was interrupted."""
    Store(results).prepare()
    if not plan.to_run:
        log_finished(plan, Store(results), [], blind=blind)
        return False
    with _interruptible(executor) as interrupted, _progress(plan, quiet) as tell:
        execute(plan, executor, root=results, folder=folder, blind=blind, tell=tell)
    return bool(interrupted)


@contextmanager
def _interruptible(executor: "Executor") -> Iterator[list[int]]:
    """The first Ctrl-C (or a TERM) asks for an early end, the second ends at once."""
    caught: list[int] = []

    def stop(number: int, frame: object) -> None:
        caught.append(number)
        if len(caught) > 1:
            warn("stopped; nothing that was finished is lost, the same command goes on")
            raise KeyboardInterrupt
        executor.stop()
        warn("stopping: the cells under way are finished first (Ctrl-C again stops at once)")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(plan: Plan, quiet: bool) -> "Iterator[Callable[[Event], None]]":
    """A bar with the time left on a terminal, one line per failed cell everywhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from firstline.benchmark.run.pool import Done, Started

    console = Console(file=sys.stderr)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bare = quiet or not console.is_terminal  # a bar in a log file is noise
    with Progress(*columns, TextColumn("{task.description}"), console=console, disable=bare) as progress:
        bar = progress.add_task("starting workers", total=plan.to_run)
        failures = 0

        def tell(event: "Event") -> None:
            nonlocal failures
            if isinstance(event, Started):
                cell = event.cell
                progress.update(
                    bar, description=f"{cell.task.text} · {cell.defense_text} · {cell.attack.text}"[:60]
                )
            elif isinstance(event, Done):
                progress.advance(bar)
                if event.record.status == "failed":
                    failures += 1
                    if failures <= 10 and not quiet:
                        console.print(
                            failure_line(event.record), markup=False, highlight=False, soft_wrap=True
                        )

        yield tell


def failure_line(record: "Record") -> str:
    """Return one line about a failed record."""
    assert record.error is not None
    where = f"{record.task.text} · {record.defense_text} · {record.attack.text} · {record.threat} · seed {record.seed}"
    return f"failed ({record.error.kind}): {where}: {record.error.type}: {record.error.message}"


def _tell_failures(failed: "list[Record]") -> None:
    for record in failed[:10]:
        say(failure_line(record))
    if len(failed) > 10:
        say(f"… and {len(failed) - 10} more; `firstline status` lists all")
    if failed:
        say("failed cells are never ranked; `--retry` runs them again\n")

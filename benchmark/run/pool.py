"""Executors: who runs groups of cells. The local pool; other executors keep to the same protocol."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event as Flag
from typing import Any, Protocol

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import Cost, Failure, Record
from firstline.benchmark.run.environment import now, variables
from firstline.benchmark.run.keys import Cell
from firstline.benchmark.run.orphans import die_with_parent
from firstline.benchmark.run.recording import Job, make_record
from firstline.benchmark.run.store import Store, Unwritable

# torch._dynamo is what the first step of any optimiser imports (2 s): once here instead of in every worker.
PRELOAD = ["torch._dynamo", "sklearn.datasets", "firstline.benchmark.run.cell", "firstline.benchmark.api"]

# glibc gives freed memory back to the system after every step of an attack and takes it again for the next: page
# faults were a third of the CPU time of PGD on a small CNN. Read by new processes only; other systems ignore them.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


@dataclass(frozen=True)
class Started:
    """A worker began a cell."""

    cell: Cell


@dataclass(frozen=True)
class Done:
    """A cell's record is on disk."""

    cell: Cell
    record: Record


Event = Started | Done


class Executor(Protocol):
    """Runs groups of cells, each group in order and in one place, and tells what happens."""

    def run(self, groups: Sequence[Sequence[Cell]], job: Job, tell: Callable[[Event], None]) -> None:
        """Return when all groups are done, or the cells under way after `stop`."""

    def stop(self) -> None:
        """Ask for an early end: the cells under way are finished, no other is begun."""


@dataclass
class _Worker:
    process: Any
    door: Connection
    group: Sequence[Cell] = ()
    finished: int = 0
    current: Cell | None = None


class LocalPool:
    """Worker processes on this machine, forked from a server that has torch loaded; one thread each."""

    def __init__(self, jobs: int) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._jobs = jobs
        self._stopping = self._context.Event()

    def stop(self) -> None:
        """Finish the cells under way and begin no other."""
        self._stopping.set()

    def run(self, groups: Sequence[Sequence[Cell]], job: Job, tell: Callable[[Event], None]) -> None:
        """Run groups; a worker that dies costs the cell that it was at, not the others."""
        waiting = deque(groups)
        workers: dict[Connection, _Worker] = {}
        try:
            while waiting or workers:
                while waiting and len(workers) < self._jobs and not self._stopping.is_set():
                    worker = self._start(job)
                    workers[worker.door] = worker
                    self._assign(worker, waiting.popleft())
                if not workers:
                    return
                for door in wait(list(workers)):
                    worker = workers[door]  # type: ignore[index]
                    try:
                        message = worker.door.recv()
                    except (EOFError, ConnectionResetError):
                        del workers[worker.door]
                        self._lost(worker, job, waiting, tell)
                        continue
                    self._handle(worker, message, waiting, workers, tell)
        finally:
            for worker in workers.values():
                worker.process.terminate()

    def _start(self, job: Job) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, job, self._stopping))
        _start_server()
        try:
            with _quiet_main():
                process.start()
        except (EOFError, ConnectionError):
            raise FirstlineError("no worker process could be started; see `firstline doctor`") from None
        theirs.close()
        return _Worker(process, ours)

    def _assign(self, worker: _Worker, group: Sequence[Cell]) -> None:
        worker.group, worker.finished, worker.current = group, 0, None
        worker.door.send(group)

    def _handle(
        self,
        worker: _Worker,
        message: tuple[str, Any],
        waiting: deque[Sequence[Cell]],
        workers: dict[Connection, _Worker],
        tell: Callable[[Event], None],
    ) -> None:
        what, content = message
        if what == "started":
            worker.current = content
            tell(Started(content))
        elif what == "done":
            worker.current, worker.finished = None, worker.finished + 1
            tell(Done(*content))
        elif what == "unwritable":
            raise Unwritable(content)
        elif waiting and not self._stopping.is_set():
            self._assign(worker, waiting.popleft())
        else:
            del workers[worker.door]
            worker.door.close()
            worker.process.join()

    def _lost(
        self, worker: _Worker, job: Job, waiting: deque[Sequence[Cell]], tell: Callable[[Event], None]
    ) -> None:
        worker.process.join()
        code = worker.process.exitcode
        if worker.current is None and worker.finished == 0 and worker.group:
            raise FirstlineError(
                f"a worker process ended before its first cell ({_death(code)}); see `firstline doctor`"
            )
        rest = worker.group[worker.finished :]
        if worker.current is not None:
            failure = Failure(
                kind="infra",
                type="WorkerDied",
                message=f"the worker process died: {_death(code)}",
                stage="cell",
            )
            record = make_record(worker.current, job, now(), Cost(), error=failure)
            tell(Done(worker.current, Store(job.root).write(record, None)))
            rest = rest[1:]
        if rest:
            waiting.appendleft(rest)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
    return f"exit code {code}"


def _start_server() -> None:
    """Start the server that workers are forked from, if it isn't running, deaf to Ctrl-C from its first moment.

    It ignores SIGINT only once torch is loaded; before that, a Ctrl-C would end it, and the run with it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process inherits the mask
    try:
        with variables({name: os.environ.get(name, value) for name, value in ALLOCATOR.items()}):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _quiet_main:
    """Keep multiprocessing from running the caller's main script again in every worker."""

    def __enter__(self) -> None:
        main = sys.modules["__main__"]
        self._file = getattr(main, "__file__", None)
        self._spec = getattr(main, "__spec__", None)
        main.__spec__ = None
        if self._file is not None:
            del main.__file__

    def __exit__(self, *_: object) -> None:
        main = sys.modules["__main__"]
        main.__spec__ = self._spec
        if self._file is not None:
            main.__file__ = self._file


def _work(door: Connection, job: Job, stopping: Flag) -> None:
    """Run groups as they come, until the door closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; cells under way are finished
    die_with_parent()
    # Imported here: the parent process plans and waits, and needs no torch.
    from firstline.benchmark.run.cell import run_group
    from firstline.benchmark.run.scorer import Nursery

    nursery = Nursery() if job.blind else None
    while True:
        try:
            group = door.recv()
        except (EOFError, ConnectionError):
            if nursery is not None:
                nursery.close()
            return
        try:
            run_group(
                group,
                job,
                nursery,
                lambda cell: door.send(("started", cell)),
                lambda cell, record: door.send(("done", (cell, record))),
                stopping.is_set,
            )
            door.send(("idle", None))
        except Unwritable as error:
            door.send(("unwritable", str(error)))
            return
        except BrokenPipeError:
            return  # the run was killed, and nobody listens any more

"""Blind scoring: a process of its own answers shuffled inputs. It never sees labels, gradients or attacks.

A fresh process is forked for every fitted system, so that nothing a system learned while it was attacked,
or while another one was scored, can reach its answers. It is forked from a nursery: a process that has torch
loaded and was itself forked before any data was seen.
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor

from firstline.benchmark.core.catalog import create
from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError, SystemFailed
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import checked
from firstline.benchmark.run.keys import Use
from firstline.benchmark.run.orphans import die_with_parent

BATCH = 256
OK = b"\0ok"  # what a good reply begins with; error texts begin otherwise
DEADLINE = 600.0  # seconds for one request; a system that takes longer has failed


@dataclass(frozen=True)
class Blueprint:
    """What a system is rebuilt from, besides its tensors."""

    task: Use
    defense: tuple[Use, ...]
    device: str

    def items(self) -> tuple[Task, Stack]:
        """Return the task and the stack."""
        task = create("task", self.task.name, self.task.settings)
        layers = [create("defense", layer.name, layer.settings) for layer in self.defense]
        assert isinstance(task, Task)
        return task, Stack(tuple(layer for layer in layers if isinstance(layer, Defense)))

    def rebuild(self, state: dict[str, Tensor]) -> System:
        """Return the system with these tensors, frozen and in evaluation mode."""
        task, stack = self.items()
        system = stack.skeleton(task)
        try:
            system.load_state_dict(state)
        except RuntimeError as error:
            raise FirstlineError(
                f"{stack}: the stored tensors don't fit what build and deploy make: {str(error).splitlines()[-1].strip()}; "
                "both must make the same modules every time"
            ) from None
        return system.to(self.device).eval().requires_grad_(False)


def answers(system: System, x: Tensor, classes: int, rng: Streams, device: str) -> Tensor:
    """Return the answers (n,) of system to x (n, *shape), asked in shuffled batches."""
    order = torch.randperm(len(x), generator=rng.torch("order"))
    noise, labels = rng.torch("noise"), torch.empty(len(x), dtype=torch.int64)
    with torch.no_grad():
        for rows in order.split(BATCH):
            labels[rows] = checked(system.respond, x[rows].to(device), noise, classes).labels.cpu()
    return labels


def serve(door: Connection) -> None:
    """Read a system, then answer requests (x, classes, rng) until the door closes. Runs in the scoring process."""
    try:
        blueprint, state, threads = door.recv()
        torch.set_num_threads(threads)
        system = blueprint.rebuild({name: torch.from_numpy(array) for name, array in state.items()})
    except Exception as error:
        door.send_bytes(_told(error))
        return
    door.send_bytes(OK)
    while True:
        try:
            x, classes, rng = door.recv()
        except (EOFError, OSError):
            return
        try:
            found = answers(system, torch.from_numpy(x), classes, rng, blueprint.device)
            door.send_bytes(OK + found.numpy().tobytes())
        except Exception as error:
            door.send_bytes(_told(error))


def _told(error: Exception) -> bytes:
    text = str(error) if isinstance(error, FirstlineError) else f"{type(error).__name__}: {error}"
    return text[:2000].encode("utf-8", "replace")


class Nursery:
    """Forks scoring processes. Make it before any data is loaded: scorers know what it knows, and no more."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            self._control.close()
            _breed(theirs)
        theirs.close()

    def scorer(self) -> tuple[Connection, int]:
        """Return the harness's end of a connection to a new scoring process, and the id of that process."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"+"], [theirs.fileno()])
        return Connection(ours.detach()), int(self._control.recv(32))

    def close(self) -> None:
        """End the nursery; scorers end when their doors close."""
        self._control.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _breed(control: socket.socket) -> None:
    """Fork a scorer for every connection that comes, until the control socket closes. Never returns."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps ended scorers
    while True:
        order, doors, _, _ = socket.recv_fds(control, 1, 1)
        if not order:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            control.close()
            try:
                serve(Connection(doors[0]))
            finally:
                os._exit(0)
        os.close(doors[0])
        control.send(str(pid).encode())


class BlindScorer:
    """The harness's end of one scoring process. After a failure the next request gets a fresh process.

    So a cell's answers don't depend on which cells were scored before it.
    """

    def __init__(
        self, nursery: Nursery, blueprint: Blueprint, state: dict[str, Tensor], threads: int = 1
    ) -> None:
        self._nursery = nursery
        self._made_of = blueprint, {name: t.detach().cpu().numpy() for name, t in state.items()}, threads
        self._door: Connection | None = None
        self._ready = False
        self._open()

    def _open(self) -> Connection:
        if self._door is None:
            self._door, self._pid = self._nursery.scorer()
            self._ready = False
            with suppress(ConnectionError):  # it ended at once: told when its answer is missing
                self._door.send(self._made_of)
        return self._door

    def _receive(self, door: Connection) -> bytes:
        # Bytes, never pickles: what comes back is from a process that runs the defense's code.
        if not door.poll(DEADLINE):
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            raise SystemFailed(f"the system did not answer within {DEADLINE:.0f} s")
        answer = door.recv_bytes()
        if not answer.startswith(OK):
            raise SystemFailed(answer.decode("utf-8", "replace"))
        return answer[len(OK) :]

    def score(self, x: Tensor, classes: int, rng: Streams) -> Tensor:
        """Return the answers (n,) to x (n, *shape). Raises SystemFailed where the system fails."""
        door = self._open()
        try:
            if not self._ready:
                self._receive(door)
                self._ready = True
            door.send((x.detach().cpu().numpy(), classes, rng))
            answer = self._receive(door)
            if len(answer) != 8 * len(x):
                raise SystemFailed(
                    f"the scoring process returned {len(answer) / 8:g} answers to {len(x)} inputs"
                )
        except (EOFError, ConnectionError):
            self.close()
            raise SystemFailed("the system ended its process while it was scored") from None
        except SystemFailed:
            self.close()
            raise
        return torch.from_numpy(np.frombuffer(answer, np.int64).copy())

    def close(self) -> None:
        """End the process."""
        if self._door is not None:
            self._door.close()
            self._door = None


@contextmanager
def scoring(nursery: Nursery, blueprint: Blueprint, state: dict[str, Tensor]) -> Iterator[BlindScorer]:
    """Give a scorer for the length of a block."""
    scorer = BlindScorer(nursery, blueprint, state)
    try:
        yield scorer
    finally:
        scorer.close()

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
    door.send_bytes(OK + str(os.getpid()).encode())
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

    def door(self) -> Connection:
        """Return the harness's end of a connection to a new scoring process."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"+"], [theirs.fileno()])
        return Connection(ours.detach())

    def close(self) -> None:
        """End the nursery; scorers end when their doors close."""
        self._control.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _breed(control: socket.socket) -> None:
    """Fork a scorer for every connection that comes, until the control socket closes. Never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps ended scorers
    while True:
        order, doors, _, _ = socket.recv_fds(control, 1, 1)
        if not order:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            try:
                serve(Connection(doors[0]))
            finally:
                os._exit(0)
        os.close(doors[0])


class BlindScorer:
    """The harness's end of one scoring process."""

    def __init__(
        self, nursery: Nursery, blueprint: Blueprint, state: dict[str, Tensor], threads: int = 1
    ) -> None:
        self._door = nursery.door()
        self._pid = 0
        self._door.send((blueprint, {name: t.detach().cpu().numpy() for name, t in state.items()}, threads))

    def _receive(self) -> bytes:
        # Bytes, never pickles: what comes back is from a process that runs the defense's code.
        try:
            if not self._door.poll(DEADLINE):
                if self._pid:
                    os.kill(self._pid, signal.SIGKILL)
                raise SystemFailed(f"the system did not answer within {DEADLINE:.0f} s")
            answer = self._door.recv_bytes()
        except (EOFError, ConnectionResetError):
            raise SystemFailed("the system ended its process while it was scored") from None
        if not answer.startswith(OK):
            raise SystemFailed(answer.decode("utf-8", "replace"))
        return answer[len(OK) :]

    def score(self, x: Tensor, classes: int, rng: Streams) -> Tensor:
        """Return the answers (n,) to x (n, *shape). Raises SystemFailed where the system fails."""
        if not self._pid:
            self._pid = int(self._receive())
        self._door.send((x.detach().cpu().numpy(), classes, rng))
        found = np.frombuffer(self._receive(), np.int64)
        if len(found) != len(x):
            raise SystemFailed(f"the scoring process returned {len(found)} answers to {len(x)} inputs")
        return torch.from_numpy(found.copy())

    def close(self) -> None:
        """End the process."""
        self._door.close()


@contextmanager
def scoring(nursery: Nursery, blueprint: Blueprint, state: dict[str, Tensor]) -> Iterator[BlindScorer]:
    """Give a scorer for the length of a block."""
    scorer = BlindScorer(nursery, blueprint, state)
    try:
        yield scorer
    finally:
        scorer.close()

"""Serving a stream: honest windows, then an evasion wave or a backdoored update, alarms, and at the first the repair.

The alarm is set on honest inputs of the defender's own (split aux, without the rows it repairs with), anew for every
system that it serves. What the repaired system serves begins with the next window. Answers come from the harness's
own process: nothing here is scored blindly.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Evasion, MinimalNorm, PoisonedData
from firstline.benchmark.core.corruptions import region_of
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.stream_record import Shape, Window
from firstline.benchmark.core.system import REFUSED, Response
from firstline.benchmark.core.target import observed
from firstline.benchmark.metrics.checks import Bools, Floats
from firstline.benchmark.metrics.stream import alarm
from firstline.benchmark.protocols.bench import Bench, Mended, Served
from firstline.benchmark.protocols.detection import acceptances
from firstline.benchmark.protocols.evasion import crafted
from firstline.benchmark.protocols.poisoning import poison, triggered_rows
from firstline.benchmark.protocols.recovery import incident, look, relapses


class Struck(NamedTuple):
    """The attacked inputs of a window as they arrive, what is asked instead where nobody attacks, which were flagged."""

    data: Data
    instead: Tensor
    flagged: Bools


class Told(NamedTuple):
    """A stream as it was served, the repairs, and for backdoors how much comes back under a few fresh poisons."""

    windows: list[Window]
    repairs: list[Mended]
    relapse: dict[str, float]


Strike = Callable[[Served, Data], Struck]


def serve(bench: Bench, shape: Shape) -> Told:
    """Serve the test examples, each once, in an order that names no defense. Raises FirstlineError for too few."""
    test, size = bench.splits.test, shape.size
    order = torch.randperm(len(test), generator=bench.rng.torch("stream"))
    parts = [test.rows(rows).to(bench.device) for rows in order.split(size) if len(rows) == size]
    count, last = round(shape.share * size), shape.before + shape.during
    if shape.before >= len(parts) or count == 0:
        raise FirstlineError(
            f"{bench.task.name} has {len(parts)} windows of {size} test examples; the first is honest, and at least "
            f"one other attacked, in at least one input: found {shape}"
        )
    clean = served = bench.fit(None)
    data, strike, poisoned = bench.splits.train, _wave(bench), None
    raised, fitted, repaired = _watch(bench, served, shape), clean, False
    windows, repairs = list[Window](), list[Mended]()
    for number, part in enumerate(parts):
        if number == shape.before and bench.threat.vector == "poisoning":
            poisoned = poison(bench)
            fitted = served = bench.fit(poisoned)
            data, strike, last, repaired = poisoned.data, _triggers(bench, poisoned), len(parts), False
            raised = _watch(bench, served, shape)
        struck = strike(served, part.rows(torch.arange(count))) if shape.before <= number < last else None
        window, honest = _served(bench, clean, served, part, struck, raised)
        windows.append(window)
        if window.alarm and bench.stack.repairs() and not repaired:
            known = incident(bench, data, served.kept, clean.system)
            hit = struck.data if struck is not None and poisoned is not None else None
            seen = look(bench, honest, hit, None if poisoned is None else poisoned.target_class)
            repairs.append(bench.repair(served, known, seen))
            served, repaired = repairs[-1].served, True
            raised = _watch(bench, served, shape)
    found: dict[str, float] = {}
    if poisoned is not None and repaired:
        known = incident(bench, data, served.kept)
        tuned = {"relapse": served.system, "relapse_without_repair": fitted.system}
        some = triggered_rows(poisoned, test.rows(order[: bench.examples]), bench.task)
        again = relapses(bench, clean.system, tuned, known, poisoned, some)
        found = {name: metric.value for name, metric in again.items()}
    return Told(windows, repairs, found)


def _wave(bench: Bench) -> Strike:
    """Inputs moved within the threat, against whatever is served at the time."""
    attack = bench.attack

    def strike(served: Served, data: Data) -> Struck:
        if not isinstance(attack, Evasion) or isinstance(attack, MinimalNorm):
            raise FirstlineError(f"{attack.name} moves no input within a radius: name an attack that does")
        target = bench.target(served.system, len(data), bench.rng)
        allowed = region_of(bench.threat, data.x, bench.task.space, bench.rng)
        moved = crafted(attack, target, data, allowed, bench)
        return Struck(Data(moved, data.y, data.ids), data.x, (target.flagged_at > 0).numpy())

    return strike


def _triggers(bench: Bench, poisoned: PoisonedData) -> Strike:
    """Inputs of other classes than the target with the trigger on."""

    def strike(served: Served, data: Data) -> Struck:
        found = triggered_rows(poisoned, data, bench.task)
        if found is None:
            raise FirstlineError(f"{bench.attack.name} has no trigger: name a backdoor")
        return Struck(found, found.x, np.zeros(len(found), np.bool_))

    return strike


def _served(
    bench: Bench,
    clean: Served,
    served: Served,
    part: Data,
    struck: Struck | None,
    raised: Callable[[Floats], bool],
) -> tuple[Window, Data]:
    """One window, and its honest inputs."""
    honest = part if struck is None else part.rows(~torch.isin(part.ids, struck.data.ids))
    right, suspicion = _honest(bench, served, honest)
    usual = bench.watched(clean.system, honest.x).labels == honest.y
    if struck is not None:
        y, answer = struck.data.y, bench.watched(served.system, struck.data.x)
        right = torch.cat([right, (answer.labels == y) | (answer.labels == REFUSED)])
        usual = torch.cat([usual, bench.watched(clean.system, struck.instead).labels == y])
        suspicion = np.concatenate([suspicion, _suspicion(answer, struck.flagged)])
    window = Window(
        attacked=struck is not None,
        inputs=len(right),
        right=int(right.sum()),
        usual=int(usual.sum()),
        alarm=raised(suspicion),
    )
    return window, honest


def _honest(bench: Bench, served: Served, data: Data) -> tuple[Tensor, Floats]:
    """Which honest inputs are answered rightly, and how suspect they are to a monitor that has seen nothing else."""
    answer = bench.watched(served.system, data.x)
    watched = bench.threat.vector == "evasion" and "gradients" not in bench.threat.grants
    flagged = observed(deepcopy(served.system), data.x) if watched else torch.zeros_like(data.y) > 0
    return answer.labels == data.y, _suspicion(answer, flagged.cpu().numpy())


def _suspicion(answer: Response, flagged: Bools) -> Floats:
    accepted = acceptances(answer)
    return np.where(flagged, np.inf, 0.0 if accepted is None else -accepted)


def _watch(bench: Bench, served: Served, shape: Shape) -> Callable[[Floats], bool]:
    """The alarm, set on honest inputs of the defender's own."""
    aux = bench.splits.aux
    known = incident(bench, bench.splits.train, served.kept).clean
    own = aux.rows(~torch.isin(aux.ids, known.ids)).to(bench.device)
    if len(own) <= shape.size:
        raise FirstlineError(
            f"{bench.task.name} leaves {len(own)} honest rows to set the alarm on; make windows smaller"
        )
    return alarm(_honest(bench, served, own)[1], shape.size, shape.fpr, bench.rng.numpy("alarm"))

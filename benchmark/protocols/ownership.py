"""Ownership tests: is a suspect claimed that was made from the system's answers, and one that was not?

The owner asks a suspect for labels through a door of its own, and its defense says how likely the answers were, had the
suspect nothing to do with the system. Three kinds of suspect are asked: the thief's copy, the system itself (stolen
as it is), and innocent systems. An innocent is the task's network, fitted to rows and true labels that its maker
has itself; nobody asked the system anything. A test without its false claims means nothing: the one that claims
everybody never misses a thief (Szyller et al. 2023, TMLR, on dataset inference).
"""

from typing import NamedTuple

import numpy as np
import torch

from firstline.benchmark.core.outcome import Floats
from firstline.benchmark.core.record import Metric
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols.bench import Bench, Served
from firstline.benchmark.protocols.numbers import plain, share

LEVEL = 0.01  # p-values of at most this are claims: of innocents, one in a hundred by chance
INNOCENTS = 20
DOOR = Threat.parse(
    "extraction/black/labels:10m"
)  # a suspect's answers are labels, whatever the thief was told


class Tested(NamedTuple):
    """p-values of the copy, of the system itself and of each innocent, and the labels that the copy was asked for."""

    copy: float
    own: float
    innocents: list[float]
    queries: int


def tested(bench: Bench, served: Served, copy: System) -> Tested | None:
    """Return what the owner's test says, None where the defense has none.

    What it says of the system and of the innocents is the same for all thieves, and found once.
    """
    found = _chance(bench, copy, "copy")
    if found is None:
        return None
    known = served.memo.setdefault("ownership", {})
    if not known:
        suspects = {"own": served.system} | {str(i): one for i, one in enumerate(innocents(bench))}
        for name, suspect in suspects.items():
            chance = _chance(bench, suspect, name)
            assert chance is not None, "whether a defense tests is not up to the suspect"
            known[name] = chance[0]
    return Tested(found[0], known["own"], [known[str(i)] for i in range(INNOCENTS)], found[1])


def innocents(bench: Bench) -> list[System]:
    """Return undefended systems, each fitted to its own half of aux."""
    aux, streams = bench.splits.aux, [bench.rng.child("innocent", str(i)) for i in range(INNOCENTS)]
    halves = [torch.randperm(len(aux), generator=rng.torch("rows"))[: (len(aux) + 1) // 2] for rng in streams]
    return Stack(()).fit_many(bench.task, aux, torch.stack(halves), streams, bench.device)


def _chance(bench: Bench, suspect: System, name: str) -> tuple[float, int] | None:
    """The p-value of a suspect and how many labels it was asked for; None where nothing tests."""
    door = Target(
        suspect.to(bench.device).eval(),
        DOOR,
        space=bench.task.space,
        classes=bench.task.classes,
        rng=bench.rng.child("verify", name),
    )
    # The streams that the system was fitted from: the owner knows what it drew.
    chance = bench.stack.verify(bench.task, bench.splits.train, door, bench.rng.child("fit"), bench.device)
    return None if chance is None else (chance, int(door.queries.sum()))


def measure(copy: Floats, own: Floats, innocent: Floats) -> dict[str, Metric]:
    """Return the metrics of p-values of a copy (1,), of the system itself (1,) and of innocents (k,)."""
    return {
        "claimed": plain(float(copy[0] <= LEVEL), 1, "share", "higher"),
        "false_claims": share(np.asarray(innocent <= LEVEL), "lower"),
        "copy_p": plain(float(copy[0]), 1, "probability", "lower"),
        "own_p": plain(float(own[0]), 1, "probability", "lower"),
    }

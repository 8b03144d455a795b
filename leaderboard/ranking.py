"""Ranks that are shared where the evidence does not part two rows."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from firstline.benchmark.metrics.rates import holm, mcnemar
from firstline.leaderboard.worst_case import Verdicts, paired

if TYPE_CHECKING:
    from firstline.benchmark.metrics.ranks import Rank

LEVEL = 0.05


class Place(NamedTuple):
    """A rank, counted from 1, and whether another row shares it."""

    rank: int
    tied: bool


def places(order: Sequence[str], alike: Callable[[str, str], bool]) -> dict[str, Place]:
    """Return the place of each name in order (best first).

    The first name leads a group. A name joins the group while it is alike to the leader; otherwise it leads
    the next one, with its own position as the rank.

    >>> places(["a", "b", "c"], lambda leader, name: name == "b")
    {'a': Place(rank=1, tied=True), 'b': Place(rank=1, tied=True), 'c': Place(rank=3, tied=False)}
    """
    groups: list[list[str]] = []
    for name in order:
        if groups and alike(groups[-1][0], name):
            groups[-1].append(name)
        else:
            groups.append([name])
    result: dict[str, Place] = {}
    rank = 1
    for group in groups:
        result |= {name: Place(rank, len(group) > 1) for name in group}
        rank += len(group)
    return result


def told_apart(systems: Mapping[str, Mapping[int, Verdicts]]) -> set[frozenset[str]]:
    """Return the pairs of systems (verdicts by seed) that hold on differently many examples.

    McNemar's exact test on the examples that both were attacked on, with Holm's correction over all pairs.
    """
    pairs = list(combinations(sorted(systems), 2))
    met = [paired(systems[a], systems[b]) for a, b in pairs]
    p = np.array([mcnemar(a.held, b.held) for a, b in met], dtype=np.float64)
    return {frozenset(pair) for pair, adjusted in zip(pairs, holm(p), strict=True) if adjusted < LEVEL}


def intervals(systems: Mapping[str, Mapping[int, Verdicts]]) -> "dict[str, Rank]":
    """Return which ranks each system (verdicts by seed) could as well have, with other examples of the same kind.

    Empty unless all met the same examples. The resamples are the same each time.
    """
    from firstline.benchmark.metrics.ranks import rank_intervals  # Numba, which a summary doesn't wait for

    if len({examples(system) for system in systems.values()}) != 1:
        return {}
    held = [np.concatenate([system[seed].held for seed in sorted(system)]) for system in systems.values()]
    ranks = rank_intervals(np.array(held), np.random.Generator(np.random.Philox(0)))
    return dict(zip(systems, ranks, strict=True))


def examples(system: Mapping[int, Verdicts]) -> frozenset[tuple[int, bytes]]:
    """Return what stands for the examples that a system (verdicts by seed) met; equal for equal examples."""
    return frozenset((seed, verdicts.ids.tobytes()) for seed, verdicts in system.items())

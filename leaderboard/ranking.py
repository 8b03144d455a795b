"""Ranks that are shared where the evidence does not part two rows."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from firstline.benchmark.metrics.rates import holm, mcnemar_counts
from firstline.leaderboard.worst_case import Bools, Verdicts, paired

if TYPE_CHECKING:
    from firstline.benchmark.metrics.ranks import Rank

LEVEL = 0.05

PairTests = Mapping[tuple[str, str], float]  # p-values by two names, the first before the second


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


def pair_tests(systems: Mapping[str, Mapping[int, Verdicts]]) -> PairTests:
    """Return the p-value of McNemar's exact test for each pair of systems (verdicts by seed), by sorted names.

    Each pair is tested on the examples that both were attacked on; nothing is corrected for the number of pairs.
    """
    pairs = list(combinations(sorted(systems), 2))
    if len({examples(system) for system in systems.values()}) == 1:
        held = {name: _together(system) for name, system in systems.items()}
        met = [(held[a], held[b]) for a, b in pairs]
    else:
        met = [(a.held, b.held) for a, b in (paired(systems[a], systems[b]) for a, b in pairs)]
    only = np.array([((a & ~b).sum(), (b & ~a).sum()) for a, b in met], dtype=np.int64).reshape(-1, 2)
    return dict(zip(pairs, map(float, mcnemar_counts(only[:, 0], only[:, 1])), strict=True))


def told_apart(tests: PairTests) -> set[frozenset[str]]:
    """Return the pairs of systems that hold on differently many examples, with Holm's correction over all pairs."""
    adjusted = holm(np.array(list(tests.values()), dtype=np.float64))
    return {frozenset(pair) for pair, p in zip(tests, adjusted, strict=True) if p < LEVEL}


def intervals(systems: Mapping[str, Mapping[int, Verdicts]]) -> "dict[str, Rank]":
    """Return which ranks each system (verdicts by seed) could as well have, with other examples of the same kind.

    Empty unless all met the same examples. The resamples are the same each time.
    """
    from firstline.benchmark.metrics.ranks import rank_intervals  # Numba, which a summary doesn't wait for

    if len({examples(system) for system in systems.values()}) != 1:
        return {}
    held = [_together(system) for system in systems.values()]
    ranks = rank_intervals(np.array(held), np.random.Generator(np.random.Philox(0)))
    return dict(zip(systems, ranks, strict=True))


def examples(system: Mapping[int, Verdicts]) -> frozenset[tuple[int, bytes]]:
    """Return what stands for the examples that a system (verdicts by seed) met; equal for equal examples."""
    return frozenset((seed, verdicts.ids.tobytes()) for seed, verdicts in system.items())


def _together(system: Mapping[int, Verdicts]) -> Bools:
    return np.concatenate([system[seed].held for seed in sorted(system)])

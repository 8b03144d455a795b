"""Check 1 of the gate, across tables: examples that fall to an attacker who sees less, and to no white box."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.limits import LIMITS
from firstline.benchmark.core.threat import Threat
from firstline.leaderboard.words import brief
from firstline.leaderboard.worst_case import Verdicts, paired, worst

LIMIT = LIMITS["black_box_gain"]


class Met(NamedTuple):
    """What a table's systems were up against, if we know it, and what each held, by defense and seed."""

    task: str
    threat: Threat | None
    examples: int
    systems: Mapping[str, Mapping[int, Verdicts]]


def outdone(table: Met, others: Iterable[Met]) -> list[str]:
    """Return warnings on a white-box table: which defense loses how many examples to less knowledge alone.

    others are all tables, this one too. Those that count are about the same inputs, moved equally far.
    """
    if table.threat is None or table.threat.knowledge != "white":
        return []
    near = [
        (other.threat, other.systems) for other in others if other.threat and _place(other) == _place(table)
    ]
    less = [(threat, systems) for threat, systems in near if threat.knowledge != "white"]
    white = [systems for threat, systems in near if threat.knowledge == "white"]
    found = []
    for defense in sorted(table.systems):
        standing = _together(systems.get(defense, {}) for systems in white)
        for threat, systems in less:
            spared = {seed: _spared(verdicts) for seed, verdicts in systems.get(defense, {}).items()}
            stood, left = paired(standing, spared)
            share = float((stood.held & ~left.held).mean()) if len(stood.held) else 0.0
            if LIMIT.verdict(share) != "pass":
                found.append(_warning(defense, str(threat), share))
    return found


def _place(table: Met) -> tuple[object, ...]:
    threat = table.threat
    return (table.task, table.examples, *((threat.goal, threat.amount) if threat else ()))


def _together(systems: Iterable[Mapping[int, Verdicts]]) -> dict[int, Verdicts]:
    """What stands under all of these threat models, by seed; without a seed that met different examples."""
    by_seed: dict[int, dict[str, Verdicts]] = {}
    for number, system in enumerate(systems):
        for seed, verdicts in system.items():
            by_seed.setdefault(seed, {})[str(number)] = verdicts
    found = {}
    for seed, all_of_it in by_seed.items():
        with suppress(FirstlineError):
            found[seed] = worst(all_of_it)
    return found


def _spared(verdicts: Verdicts) -> Verdicts:
    """Count what was wrong already when clean as held: no attack broke it."""
    return replace(verdicts, held=verdicts.held | ~verdicts.right)


def _warning(defense: str, threat: str, share: float) -> str:
    return (
        f"{brief(defense)}: {share:.1%} of the examples break under {threat} and under no white-box attack; "
        "its gradients may be masked, and its worst case here too good."
    )

"""How long will it take? From the CPU seconds of past records, by task, defense and attack."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from firstline.benchmark.run.keys import Cell
from firstline.benchmark.run.store import write_whole

if TYPE_CHECKING:
    from firstline.benchmark.core.record import Record

SHIPPED = (
    Path(__file__).resolve().parent / "timings.json"
)  # measured on two cores of a 2023 server, one thread each
UNKNOWN = 5.0  # seconds, for what was never timed

Timings = dict[str, list[float]]  # name -> [seconds in all, how often]


def read_timings(root: Path) -> Timings:
    """Return the timings of past runs in root over those that come with firstline."""
    return {**_read(SHIPPED), **_read(root / "timings.json")}


def _read(path: Path) -> Timings:
    """The timings in a file; nothing where it is missing or damaged, since they only serve an estimate."""
    try:
        raw = json.loads(path.read_text())
        return {str(name): [float(total), float(count)] for name, (total, count) in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def add_timings(root: Path, records: Iterable["Record"]) -> None:
    """Fold the seconds of new records into root's timings."""
    path = root / "timings.json"
    timings = _read(path)
    for record in records:
        if record.status != "ok":
            continue
        task, defense = record.task.name, record.defense_text
        spent = record.cost.repair_seconds + record.cost.craft_seconds + record.cost.score_seconds
        for name, seconds in (
            (_fit(task, defense), record.cost.fit_seconds),
            (_cell(task, defense, record.attack.name), spent),
        ):
            total, count = timings.get(name, [0.0, 0])
            timings[name] = [round(total + seconds, 3), count + 1]
    write_whole(path, json.dumps(timings, sort_keys=True, indent=0).encode())


def estimate(groups: Sequence[Sequence[Cell]], timings: Timings, jobs: int) -> tuple[float, int]:
    """Return the seconds that groups will take on jobs workers, and for how many cells nothing is known."""
    total, longest, unknown = 0.0, 0.0, 0
    for group in groups:
        seconds = 0.0
        for i, cell in enumerate(group):
            fit = _mean(timings, _fit(cell.task.name, cell.defense_text))
            craft = _mean(timings, _cell(cell.task.name, cell.defense_text, cell.attack.name))
            unknown += fit is None or craft is None
            refits = i == 0 or cell.threat.vector == "poisoning"
            seconds += (UNKNOWN if craft is None else craft) + (UNKNOWN if fit is None else fit) * refits
        total, longest = total + seconds, max(longest, seconds)
    return max(total / max(1, jobs), longest), unknown


def _fit(task: str, defense: str) -> str:
    return f"fit {task} {defense}"


def _cell(task: str, defense: str, attack: str) -> str:
    return f"cell {task} {defense} {attack}"


def _mean(timings: Timings, name: str) -> float | None:
    total, count = timings.get(name, [0.0, 0])
    return total / count if count else None

"""What a table of poisoned systems says of their repair: how many recovered, how soon, and what it looked like.

Sources: the definitions are those of the recovery protocol; the share has Wilson's interval, and the time is Kaplan &
Meier's 1958 curve up to a horizon, since a repair that never recovered is no short one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from firstline.benchmark.core.record import Record
from firstline.benchmark.metrics.rates import Interval, wilson
from firstline.leaderboard.curves import HEIGHT, WIDTH

CURVES = {"accuracy": "recovery_accuracy", "attack": "recovery_attack_success_rate"}  # by the line's class
MEANS = {  # with units, in the order of the columns
    "accuracy_before_repair": "share",
    "accuracy": "share",
    "attack_success_rate_before_repair": "share",
    "attack_success_rate": "share",
    "resilience_loss_without_repair": "share",
    "resilience_loss": "share",
    "relapse_without_repair": "share",
    "relapse": "share",
}
REPAIRED = "accuracy_before_repair"  # what every record of a repair has

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Recovery:
    """One cell over its seeds. means are by metric, those that all records have; lines are points of SVG polylines.

    recovered is the share of the systems that were not healthy before and are so at last, None where all were healthy;
    samples is the mean number of clean rows until then, counted up to horizon, the longest repair.
    """

    means: Mapping[str, float]
    lines: Mapping[str, str]
    recovered: Interval | None
    cases: int
    samples: float | None
    horizon: float


def recovery(records: Iterable[Record]) -> Recovery | None:
    """Return what one cell's records say of the repair, None where nothing was repaired."""
    found = [record for record in records if REPAIRED in record.metrics]
    if not found:
        return None
    values = [{name: metric.value for name, metric in record.metrics.items()} for record in found]
    means = {
        name: sum(v[name] for v in values) / len(values) for name in MEANS if all(name in v for v in values)
    }
    lines = {kind: drawn for kind, name in CURVES.items() if (drawn := _drawn(found, name))}
    ill = [v for v in values if "recovered" in v and "repair_samples" in v]
    if not ill:
        return Recovery(means, lines, None, 0, None, 0.0)
    from firstline.benchmark.metrics.survival import restricted_mean  # Numba, which only a page waits for

    well = np.array([v["recovered"] > 0 and "recovery_samples" in v for v in ill])
    times = np.array(
        [v["recovery_samples" if ok else "repair_samples"] for v, ok in zip(ill, well, strict=True)]
    )
    horizon = max(v["repair_samples"] for v in ill)
    known = horizon > 0 and times.min() >= 0
    samples = restricted_mean(times, well, horizon=horizon) if known else None
    return Recovery(means, lines, wilson(int(well.sum()), len(well)), len(well), samples, horizon)


def _drawn(records: Sequence[Record], name: str) -> str:
    """The mean over records, WIDTH by HEIGHT; a repair that ended before the longest stays as it was then."""
    curves = [record.curves.get(name, []) for record in records]
    if not all(map(_is_curve, curves)):
        return ""
    grid = sorted({x for points in curves for x, _ in points})
    means = [np.interp(grid, [x for x, _ in points], [y for _, y in points]) for points in curves]
    mean = np.mean(means, axis=0)
    return " ".join(
        f"{WIDTH * x / grid[-1]:.1f},{HEIGHT * (1 - y):.1f}" for x, y in zip(grid, mean, strict=True)
    )


def _is_curve(points: Points) -> bool:
    rises = len(points) > 1 and points[0][0] == 0 and all(a < b for (a, _), (b, _) in pairwise(points))
    return rises and all(0 <= y <= 1 for _, y in points)

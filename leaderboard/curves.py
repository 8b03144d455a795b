"""Security curves: the accuracy that a minimal-norm attack leaves at each radius."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from firstline.benchmark.core.record import Record
from firstline.benchmark.core.threat import Threat

NAME = "robust_accuracy"
SHOWN = (0.0, 0.5, 1.0, 2.0, 4.0)  # radii that are given as numbers, in those of the threat model
WIDTH, HEIGHT = 160, 48  # of a drawing
NEAR = 1 + 1e-9  # rounding of radii


@dataclass(frozen=True)
class Curve:
    """The mean over seeds: left[i] is the share of the inputs that stands at radii[i]."""

    radii: tuple[float, ...]
    left: tuple[float, ...]

    def at(self, radius: float) -> float | None:
        """Return the share that stands at radius, None where the curve doesn't reach it."""
        if radius > self.radii[-1] * NEAR or radius * NEAR < self.radii[0]:
            return None
        return self.left[bisect_right(self.radii, radius * NEAR) - 1]

    def across(self, radius: float) -> float:
        """Return where radius lies in a drawing, from its left."""
        return WIDTH * min(1.0, radius / self.radii[-1])

    def drawn(self) -> str:
        """Return the points of an SVG polyline, WIDTH by HEIGHT, with all inputs standing at the top."""
        return " ".join(
            f"{self.across(radius):.1f},{HEIGHT * (1 - left):.1f}"
            for radius, left in zip(self.radii, self.left, strict=True)
        )


def curve(records: Iterable[Record]) -> Curve | None:
    """Return the curve of one cell's records, None where they have none, or none that can be put together."""
    found = [record.curves[NAME] for record in records if record.curves.get(NAME)]
    if not found:
        return None
    radii = {tuple(radius for radius, _ in points) for points in found}
    shares = [[left for _, left in points] for points in found]
    first = min(radii)
    rising = len(first) > 1 and first[0] >= 0 and all(a < b for a, b in pairwise(first))
    if len(radii) > 1 or not rising or not all(0 <= left <= 1 for lefts in shares for left in lefts):
        return None
    return Curve(first, tuple(sum(lefts) / len(lefts) for lefts in zip(*shares, strict=True)))


def radii(threat: Threat) -> tuple[float, ...]:
    """Return the radii at which the curves of a table are given as numbers."""
    return tuple(factor * threat.eps for factor in SHOWN) if threat.eps > 0 else ()

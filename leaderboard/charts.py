"""Drawings as SVG, made when the site is built: no library to ship, and both themes by style sheet.

A drawing only repeats numbers that stand in a table beside it. Text is escaped here, since these are not templates.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

from firstline.leaderboard.words import brief

LEFT, RIGHT, TOP, BOTTOM = 46.0, 20.0, 24.0, 38.0  # margins around the axes of a chart


class Point(NamedTuple):
    """A mark of a scatter plot: where, between which limits, what it is called, and whether nothing beats it."""

    name: str
    number: str
    x: float
    y: float
    lo: float | None
    hi: float | None
    best: bool
    reference: bool = False
    ranked: bool = True


class Line(NamedTuple):
    """A line of a chart: points (x, y) by rising x, y in [0, 1]; style counts from 0 and picks colour and dashes."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int


class Dot(NamedTuple):
    """A row of a profile: a share between its limits, that of the undefended system, and whether it is the worst."""

    value: float
    lo: float | None
    hi: float | None
    reference: float | None


class Axis(NamedTuple):
    """A scale from lo to hi, in logarithms if log, and the ticks with their labels."""

    lo: float
    hi: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def at(self, value: float, length: float) -> float:
        """Return how far along length a value lies, kept inside."""
        lo, hi, v = (
            (math.log10(self.lo), math.log10(self.hi), math.log10(max(value, self.lo)))
            if self.log
            else (self.lo, self.hi, value)
        )
        return length * min(1.0, max(0.0, (v - lo) / (hi - lo)))


def shares(values: Iterable[float] = (), step: float = 0.2) -> Axis:
    """Return an axis of shares from 0 to 1, or from a round number below the least value if that is well above 0."""
    least = min(values, default=0.0)
    lo = max(0.0, math.floor((least - 0.05) * 5) / 5) if least > 0.45 else 0.0
    width = 0.1 if lo >= 0.5 else step
    count = round((1 - lo) / width)
    return Axis(lo, 1.0, [(lo + i * width, f"{100 * (lo + i * width):.0f}%") for i in range(count + 1)])


def seconds(values: Sequence[float]) -> Axis:
    """Return a logarithmic axis of seconds around positive values."""
    lo = math.floor(math.log10(min(values)))
    hi = max(lo + 1, math.ceil(math.log10(max(values))))
    return Axis(10.0**lo, 10.0**hi, [(10.0**e, f"{10.0**e:g} s") for e in range(lo, hi + 1)], log=True)


def linear(most: float, unit: str = "") -> Axis:
    """Return an axis from 0 to most, with about four round ticks."""
    most = most if most > 0 else 1.0
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= most / 4.999)
    ticks = [(i * step, f"{i * step:g}{unit}") for i in range(int(most / step * (1 + 1e-9)) + 1)]
    return Axis(0.0, most, ticks)


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _frame(width: float, height: float, x: Axis, y: Axis, x_title: str, y_title: str) -> list[str]:
    w, h = width - LEFT - RIGHT, height - TOP - BOTTOM
    parts = []
    for value, label in y.ticks:
        at = TOP + h - y.at(value, h)
        parts.append(f'<line class="grid" x1="{_n(LEFT)}" y1="{_n(at)}" x2="{_n(LEFT + w)}" y2="{_n(at)}"/>')
        parts.append(
            f'<text class="tick" x="{_n(LEFT - 6)}" y="{_n(at + 3.5)}" text-anchor="end">{label}</text>'
        )
    for value, label in x.ticks:
        at = LEFT + x.at(value, w)
        parts.append(f'<line class="grid" x1="{_n(at)}" y1="{_n(TOP)}" x2="{_n(at)}" y2="{_n(TOP + h)}"/>')
        parts.append(
            f'<text class="tick" x="{_n(at)}" y="{_n(TOP + h + 15)}" text-anchor="middle">{label}</text>'
        )
    parts.append(
        f'<text class="title" x="{_n(LEFT + w)}" y="{_n(height - 6)}" text-anchor="end">{escape(x_title)}</text>'
    )
    if y_title:
        parts.append(f'<text class="title" x="{_n(LEFT - 6)}" y="11">{escape(y_title)}</text>')
    return parts


def _svg(kind: str, width: float, height: float, parts: Iterable[str], label: str = "") -> Markup:
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return Markup(
        f'<svg class="chart {kind}" viewBox="0 0 {_n(width)} {_n(height)}" {role} focusable="false">'
        + "".join(parts)
        + "</svg>"
    )


def scatter(
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    x_title: str,
    y_title: str,
    label: str,
    *,
    cheap: bool = False,
    size: tuple[int, int] = (560, 340),
) -> Markup:
    """Return a scatter plot; numbers name the marks, and a stepped line joins those that nothing beats.

    cheap says that less of x is better.
    """
    width, height = size
    w, h = width - LEFT - RIGHT, height - TOP - BOTTOM
    parts = _frame(width, height, x, y, x_title, y_title)

    def place(point: Point) -> tuple[float, float]:
        return LEFT + x.at(point.x, w), TOP + h - y.at(point.y, h)

    front = sorted({place(point) for point in points if point.best})
    if len(front) > 1:
        # What is known between two systems is only that the worse of both can be had.
        path = f"M{_n(front[0][0])} {_n(front[0][1])}"
        for across, up in front[1:]:
            path += f"H{_n(across)}V{_n(up)}" if cheap else f"V{_n(up)}H{_n(across)}"
        parts.append(f'<path class="front" d="{path}"/>')
    for point in sorted(points, key=lambda p: (p.best, p.name)):
        across, up = place(point)
        kind = "best" if point.best else "reference" if point.reference else "other"
        kind += "" if point.ranked else " aside"
        whisker = ""
        if point.lo is not None and point.hi is not None:
            low, high = TOP + h - y.at(point.lo, h), TOP + h - y.at(point.hi, h)
            whisker = (
                f'<line class="whisker" x1="{_n(across)}" y1="{_n(high)}" x2="{_n(across)}" y2="{_n(low)}"/>'
            )
        parts.append(
            f'<g class="point {kind}"><title>{escape(brief(point.name))}</title>{whisker}'
            f'<circle cx="{_n(across)}" cy="{_n(up)}" r="{4.5 if point.best else 3.5}"/></g>'
        )
    parts += _labels([(point, *place(point)) for point in points if point.number], width)
    return _svg("scatter", width, height, parts, label)


def _labels(placed: Sequence[tuple[Point, float, float]], width: float) -> list[str]:
    """Numbers beside their marks; one that would cover another is left out, those that nothing beats come first."""
    taken: list[tuple[float, float]] = [(across, up) for _, across, up in placed]
    parts = []
    for point, across, up in sorted(placed, key=lambda p: (not p[0].best, p[2], p[1], p[0].name)):
        for dx, dy in ((9, -6), (9, 12), (-9, -6), (-9, 12)):
            x, y = across + dx, up + dy
            crowded = sum(abs(a - x) < 11 and abs(b - (y - 4)) < 9 for a, b in taken)
            if not crowded and LEFT < x < width - 4:
                anchor = "start" if dx > 0 else "end"
                parts.append(
                    f'<text class="mark{" best" if point.best else ""}" x="{_n(x - dx / 3)}" y="{_n(y)}" '
                    f'text-anchor="{anchor}">{escape(point.number)}</text>'
                )
                taken.append((x, y - 4))
                break
    return parts


def lines(
    series: Sequence[Line],
    x: Axis,
    x_title: str,
    label: str,
    *,
    mark: float | None = None,
    size: tuple[int, int] = (560, 260),
    steps: bool = False,
) -> Markup:
    """Return lines over x with y in shares; mark is an upright line, such as at the radius of the threat model."""
    width, height = size
    w, h = width - LEFT - RIGHT, height - TOP - BOTTOM
    y = shares()
    parts = _frame(width, height, x, y, x_title, "")
    if mark is not None and x.lo <= mark <= x.hi:
        at = LEFT + x.at(mark, w)
        parts.append(f'<line class="threat" x1="{_n(at)}" y1="{_n(TOP)}" x2="{_n(at)}" y2="{_n(TOP + h)}"/>')
    for line in series:
        path = ""
        for number, (across, up) in enumerate(line.points):
            a, b = LEFT + x.at(across, w), TOP + h - y.at(up, h)
            path += (
                f"M{_n(a)} {_n(b)}" if not number else (f"H{_n(a)}V{_n(b)}" if steps else f"L{_n(a)} {_n(b)}")
            )
        parts.append(
            f'<path class="series s{line.style % 6}" d="{path}"><title>{escape(brief(line.name))}</title></path>'
        )
    return _svg("lines", width, height, parts, label)


def dots(rows: Sequence[Dot], *, width: int = 260, row: int = 18) -> Markup:
    """Return one strip with a filled dot per row, its limits, and a hollow one for the undefended system."""
    parts = []
    w = width - 16
    for fraction in (0.0, 0.5, 1.0):
        at = 8 + w * fraction
        parts.append(f'<line class="grid" x1="{_n(at)}" y1="0" x2="{_n(at)}" y2="{_n(row * len(rows))}"/>')
    for number, one in enumerate(rows):
        y = row * (number + 0.5)
        if one.reference is not None:
            parts.append(
                f'<circle class="undefended" cx="{_n(8 + w * _inside(one.reference))}" cy="{_n(y)}" r="4"/>'
            )
        if one.lo is not None and one.hi is not None:
            parts.append(
                f'<line class="whisker" x1="{_n(8 + w * _inside(one.lo))}" y1="{_n(y)}" '
                f'x2="{_n(8 + w * _inside(one.hi))}" y2="{_n(y)}"/>'
            )
        parts.append(f'<circle class="dot" cx="{_n(8 + w * _inside(one.value))}" cy="{_n(y)}" r="4"/>')
    return _svg("dots", width, row * len(rows), parts)


def _inside(value: float) -> float:
    return min(1.0, max(0.0, value))


def histogram(
    edges: Sequence[float], series: Sequence[tuple[str, Sequence[int]]], x_title: str, label: str
) -> Markup:
    """Return counts per bin: bars of the first series, and an outline of the second if there is one."""
    width, height = 420, 150
    w, h = width - LEFT - RIGHT, height - TOP - BOTTOM
    most = max((max(counts, default=0) for _, counts in series), default=0) or 1
    step = next(s for p in range(12) for s in (10**p, 2 * 10**p, 5 * 10**p) if most / s <= 3)
    y = Axis(0, most, [(i * step, f"{i * step:g}") for i in range(most // step + 1)])
    lo, hi = edges[0], edges[-1]
    x = Axis(lo, hi, [(edge, _short(edge)) for edge in (lo, (lo + hi) / 2, hi)])
    parts = _frame(width, height, x, y, x_title, "")
    for number, (_, counts) in enumerate(series):
        if number == 0:
            bars = "".join(
                f"M{_n(LEFT + x.at(a, w) + 0.5)} {_n(TOP + h)}v{_n(-y.at(count, h))}"
                f"h{_n(max(0.5, x.at(b, w) - x.at(a, w) - 1))}V{_n(TOP + h)}"
                for (a, b), count in zip(pairwise(edges), counts, strict=True)
                if count
            )
            parts.append(f'<path class="fill" d="{bars}"/>')
        else:
            path = f"M{_n(LEFT)} {_n(TOP + h)}"
            for b, count in zip(edges[1:], counts, strict=True):
                path += f"V{_n(TOP + h - y.at(count, h))}H{_n(LEFT + x.at(b, w))}"
            parts.append(f'<path class="outline" d="{path}V{_n(TOP + h)}"/>')
    return _svg("histogram", width, height, parts, label)


def stack(parts: Sequence[tuple[str, int]]) -> Markup:
    """Return one bar cut in proportion to counts; the first part is the darkest."""
    total = sum(count for _, count in parts) or 1
    found, at = [], 0.0
    for number, (_, count) in enumerate(parts):
        wide = 420 * count / total
        found.append(f'<rect class="part{number}" x="{_n(at)}" y="0" width="{_n(wide)}" height="12"/>')
        at += wide
    return _svg("stack", 420, 12, found)


def badge(label: str, value: str, step: int) -> str:
    """Return a badge as a file of its own: label, and value on a colour of the scale from 0 (bad) to 9 (good)."""
    colours = (
        "#9a4a12",
        "#a3571f",
        "#8a5a33",
        "#75604a",
        "#5f6368",
        "#54687d",
        "#45698f",
        "#33669c",
        "#205fa4",
        "#0b57a4",
    )
    left, right = (round(6.6 * len(text) + 14) for text in (label, value))
    total = left + right
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="20" viewBox="0 0 {total} 20" role="img" '
        f'aria-label="{escape(label)}: {escape(value)}"><title>{escape(label)}: {escape(value)}</title>'
        f'<rect width="{left}" height="20" fill="#33363b"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colours[min(9, max(0, step))]}"/>'
        '<g fill="#fff" font-family="Verdana, DejaVu Sans, sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{left / 2:g}" y="14" textLength="{left - 14}">{escape(label)}</text>'
        f'<text x="{left + right / 2:g}" y="14" textLength="{right - 14}">{escape(value)}</text></g></svg>\n'
    )

"""What records of streams say: a table per task, attack, threat model and shape, drawn and in numbers.

Nothing is ranked: `none`, which never notices, and the instant oracle stand at the top, and bracket the rest.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.stream_record import Shape, StreamRecord
from firstline.benchmark.metrics.stream import NOTHING, ORACLE, Line, lines, runs

WIDTH, HEIGHT = 240, 72  # of a drawing


@dataclass(frozen=True)
class StreamRow:
    """One defense: its line over seeds, the records behind it, and in how many seeds each window raised an alarm."""

    line: Line
    tags: tuple[str, ...]
    records: tuple[StreamRecord, ...]
    alarms: tuple[int, ...]

    @property
    def drawn(self) -> str:
        """The points of an SVG polyline, WIDTH by HEIGHT: a point in the middle of each window, all right at the top."""
        service = self.line.summary.service
        return " ".join(
            f"{_across(number + 0.5, len(service)):.1f},{HEIGHT * (1 - level):.1f}"
            for number, level in enumerate(service)
        )


@dataclass(frozen=True)
class StreamTable:
    """The defenses of one task under one attack and threat model, in streams of one shape; [first, last) is attacked."""

    task: str
    attack: str
    threat: str
    shape: Shape
    windows: int
    first: int
    last: int
    rows: tuple[StreamRow, ...]

    @property
    def anchor(self) -> str:
        """The id of the table on its page."""
        place = [self.task, self.attack, self.threat, self.shape.model_dump(), self.windows]
        return "t-" + hashlib.sha256(canonical(place).encode()).hexdigest()[:12]

    @property
    def brackets(self) -> Mapping[str, StreamRow]:
        """The rows of `none` and of the instant oracle, by the class of their lines."""
        classes = {NOTHING: "nothing", ORACLE: "oracle"}
        return {classes[row.line.defense]: row for row in self.rows if row.line.defense in classes}

    @property
    def shaded(self) -> tuple[float, float]:
        """Where the attacked windows begin in a drawing, and how wide they are."""
        begin = _across(self.first, self.windows)
        return begin, _across(self.last, self.windows) - begin


def stream_tables(records: Iterable[StreamRecord]) -> list[StreamTable]:
    """Return the tables of all records. Of two for one defense and seed the newer counts; their order doesn't matter."""
    groups: dict[tuple[str, str, str, str, int], dict[tuple[str, int], StreamRecord]] = {}
    for record in sorted(records, key=lambda r: (r.provenance.ended, r.key, r.to_json())):
        shape = canonical(record.shape.model_dump())
        at = (record.task.text, record.threat, record.attack.text, shape, len(record.windows))
        groups.setdefault(at, {})[record.defense_text, record.seed] = record
    return [_table([group[at] for at in sorted(group)]) for _, group in sorted(groups.items())]


def _table(records: Sequence[StreamRecord]) -> StreamTable:
    one = records[0]
    attacked = [number for number, window in enumerate(one.windows) if window.attacked]
    rows = [
        _row(line, [r for r in records if r.defense_text == line.defense]) for line in lines(runs(records))
    ]
    order = (NOTHING, ORACLE)
    rows.sort(
        key=lambda row: (
            order.index(row.line.defense) if row.line.defense in order else len(order),
            row.line.summary.loss,
            row.line.defense,
        )
    )
    return StreamTable(
        task=one.task.text,
        attack=one.attack.text,
        threat=one.threat,
        shape=one.shape,
        windows=len(one.windows),
        first=attacked[0],
        last=attacked[-1] + 1,
        rows=tuple(rows),
    )


def _row(line: Line, records: Sequence[StreamRecord]) -> StreamRow:
    return StreamRow(
        line=line,
        tags=tuple(sorted({tag for record in records for tag in record.tags})),
        records=tuple(records),
        alarms=tuple(
            sum(window.alarm for window in windows)
            for windows in zip(*(record.windows for record in records), strict=True)
        ),
    )


def _across(window: float, windows: int) -> float:
    return WIDTH * window / windows

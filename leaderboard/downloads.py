"""The numbers as files: CSV that a spreadsheet may open, JSON, Parquet, BibTeX, the schema, and checksums."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.record import Record, json_schema
from firstline.leaderboard.summary import Summary
from firstline.leaderboard.table import Table

FORMAT = "firstline.board/2"
INDEX = "index.json"
COLUMNS = (
    "board",
    "collection",
    "key",
    "suite",
    "task",
    "defense",
    "attack",
    "threat",
    "seed",
    "status",
    "gate",
    "ended",
)
METRIC = ("metric", "value", "lo", "hi", "n", "unit", "better")
_NOWHERE = ("",) * len(COLUMNS)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def harmless(value: Any) -> Any:
    """Return a cell of a CSV file that no spreadsheet takes for a formula; numbers stay as they are.

    >>> harmless("=1+1"), harmless("pgd"), harmless(-0.5)
    ("'=1+1", 'pgd', -0.5)
    """
    if not isinstance(value, str):
        return "" if value is None else value
    return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) or value.startswith(_FORMULA) else value


def _harmless(values: Iterable[Any]) -> list[Any]:
    return [harmless(value) for value in values]


def _place(record: Record, board: Summary) -> tuple[Any, ...]:
    return (
        board["id"],
        board["collection"],
        record.key,
        record.suite,
        record.task.text,
        record.defense_text,
        record.attack.text,
        record.threat,
        record.seed,
        record.status,
        record.gate.verdict,
        record.provenance.ended,
    )


def _lines(record: Record, place: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    if not record.metrics:
        yield (*place, None, None, None, None, None, None, None)
    for name, m in sorted(record.metrics.items()):
        yield (*place, harmless(name), m.value, m.lo, m.hi, m.n, harmless(m.unit), m.better)


def board_csv(table: Table, board: Summary) -> str:
    """Return a board as CSV: a line for each record, and for each metric its value and limits."""
    return records_csv([(record, board) for row in table.rows for record in row.records])


def board_json(board: Summary) -> str:
    """Return a board as JSON: its entries, with ranks, scores, cost and coverage."""
    return canonical({"format": FORMAT, "board": board}) + "\n"


def records_csv(records: Sequence[tuple[Record, Summary]]) -> str:
    """Return records as CSV: a line for each record, and for each metric its value and limits."""
    names = sorted({name for record, _ in records for name in record.metrics})

    def line(record: Record, board: Summary) -> list[Any]:
        found = _harmless(_place(record, board))
        for name in names:
            metric = record.metrics.get(name)
            found += [metric.value, metric.lo, metric.hi] if metric else [None, None, None]
        return found

    head = [*COLUMNS, *(f"{name}{end}" for name in names for end in ("", ".lo", ".hi"))]
    return _csv(head, (line(record, board) for record, board in records))


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_harmless(head))
    writer.writerows(rows)
    return text.getvalue()


def records_parquet(records: Sequence[tuple[Record, Summary]]) -> bytes:
    """Return all records as Parquet: a row for each record and metric."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "seed": pa.int64(),
        "n": pa.int64(),
        "value": pa.float64(),
        "lo": pa.float64(),
        "hi": pa.float64(),
    }
    places = list(zip(*(_place(record, board) for record, board in records), strict=True))
    lines = [(at, *line[len(COLUMNS) :]) for at, (r, _) in enumerate(records) for line in _lines(r, _NOWHERE)]
    at, *values = zip(*lines, strict=True) if lines else [()] * (1 + len(METRIC))
    rows = pa.array(at, type=pa.int64())
    columns = {
        **{
            n: pa.array(v, kinds.get(n, pa.string())).take(rows) for n, v in zip(COLUMNS, places, strict=True)
        },
        **{n: pa.array(v, kinds.get(n, pa.string())) for n, v in zip(METRIC, values, strict=True)},
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def index_json(boards: Iterable[Summary], title: str) -> str:
    """Return the small index of the site: a line for each board, and where its file is."""
    names = ("id", "collection", "vector", "task", "threat", "examples", "records", "failed")
    lines = [
        {name: board[name] for name in names}  # type: ignore[literal-required]
        | {"path": f"data/boards/{board['id']}.json"}
        for board in boards
    ]
    return canonical({"format": FORMAT, "title": title, "boards": lines}) + "\n"


def schema_json() -> str:
    """Return the JSON Schema of records."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def size(count: int) -> str:
    """Return a number of bytes in words.

    >>> size(900), size(123_456), size(12_345_678)
    ('900 B', '123 kB', '12.3 MB')
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"

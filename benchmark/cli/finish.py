"""What follows a run: the summary in the terminal, the board and the MLflow store."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from firstline.benchmark.cli.show_text import count, say, table
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.run import keys
from firstline.benchmark.run.store import Store, write_whole

if TYPE_CHECKING:
    from firstline.benchmark.core.record import Record
    from firstline.benchmark.core.stream_record import StreamRecord
    from firstline.benchmark.run.keys import Cell
    from firstline.leaderboard.table import Estimate, Measure, Table

Kind = TypeVar("Kind")


def warn(text: str) -> None:
    """Print a line on standard error."""
    sys.stderr.write(text + "\n")


def sound_records(store: Store, wanted: Iterable[str] | None = None) -> "list[Record]":
    """Return the store's records (those with wanted keys, if given); a damaged one is named and left out."""
    return list(_sound(store.read, store.record_keys() if wanted is None else wanted))


def sound_streams(store: Store) -> "list[StreamRecord]":
    """Return the records of the store's streams; a damaged one is named and left out."""
    return list(_sound(store.read_stream, store.stream_keys()))


def _sound(read: Callable[[str], Kind], keys: Iterable[str]) -> Iterator[Kind]:
    for key in keys:
        try:
            yield read(key)
        except FirstlineError as error:
            warn(f"left out: {error}")


def records_of(store: Store, cells: "list[Cell]", *, blind: bool) -> "list[Record]":
    """Return the sound records of these cells that there are, in their order."""
    wanted = [keys.key(keys.cell_preimage(cell, blind=blind)) for cell in cells]
    return sound_records(store, [key for key in wanted if store.record_path(key).is_file()])


def summarise(store: Store, records: "list[Record]") -> "list[Table]":
    """Print the tables of records, best first, and return them."""
    from firstline.benchmark.core import catalog
    from firstline.leaderboard.names import controls
    from firstline.leaderboard.table import tables

    known = controls(catalog.load().cards)
    made = tables(records, store.outcomes, resampled=False, controls=known)
    for one in made:
        say(f"{one.task} · {one.threat}")
        say(table(*_rows(one)))
        if one.detections:
            say()
            say(table(*_detections(one)))
        for warning in [one.invalid, *one.warnings]:
            if warning:
                say(f"  {warning}")
        say()
    return made


def _rows(one: "Table") -> tuple[list[str], list[list[str]]]:
    beside = [] if one.vector == "evasion" else [m for m in one.measures if m != one.score][:3]
    score = "WORST CASE" if one.vector == "evasion" else one.score.name.upper() if one.score else ""
    head = ["RANK", score, *([m.name.upper() for m in beside] or ["CLEAN"]), "DEFENSE"]
    rows = []
    for row in one.rows:
        others = [row.clean] if one.vector == "evasion" else [_worst(row, measure) for measure in beside]
        rank = f"{row.place.rank}" if row.place else "-"
        why = f"  ({row.objections[0]})" if row.objections else ""
        rows.append([rank, _number(row.score), *[_number(o, short=True) for o in others], row.defense + why])
    return head, rows


def _detections(one: "Table") -> tuple[list[str], list[list[str]]]:
    """What refusing and watching systems tell apart, leaving out columns that nobody has."""
    from firstline.leaderboard.words import heading, number

    there = one.detected
    rows = [
        [number(cell.estimates[n].value, u) if n in cell.estimates else "-" for n, u in there.items()]
        + [cell.attack, row.defense]
        for row, cell in one.detections
    ]
    return [*(heading(name).upper() for name in there), "ATTACK", "DEFENSE"], rows


def _worst(row: Any, measure: "Measure") -> "Estimate | None":
    found = [cell.estimates[measure.name] for cell in row.counted if measure.name in cell.estimates]
    pick = max if measure.better == "lower" else min
    return pick(found, key=lambda estimate: estimate.value) if found else None


def _number(found: "Estimate | None", short: bool = False) -> str:
    if found is None:
        return "-"
    if short or found.lo is None or found.hi is None:
        return f"{found.value:.1%}"
    return f"{found.value:.1%} [{found.lo:.1%}, {found.hi:.1%}]"


def build_board(store: Store, records: "list[Record]", out: Path, title: str) -> Path:
    """Write the static pages of records, and of all streams and papers of the store; return the first page."""
    return build_boards([(store, records)], out, title)


def build_boards(found: "Sequence[tuple[Store, list[Record]]]", out: Path, title: str) -> Path:
    """Write the static pages of several stores with the records that count of each; return the first page."""
    from firstline.benchmark.core import catalog
    from firstline.leaderboard.papers import read_papers
    from firstline.leaderboard.site import Collection, build_site

    # By the folder's own name where that is enough: pages of a folder are the same wherever it lies.
    names = [store.root.resolve().name for store, _ in found]
    collections = [
        Collection(
            name if names.count(name) == 1 else f"{name} {number}",
            records,
            store.outcomes,
            sound_streams(store),
            store.picture,
        )
        for number, (name, (store, records)) in enumerate(zip(names, found, strict=True), start=1)
    ]
    papers = {paper.name: paper for store, _ in found for paper in read_papers(store.root)}
    return build_site(collections, out, title=title, cards=catalog.load().cards, papers=papers.values())


def default_uri(root: Path) -> str:
    """Return the MLflow store of a results folder."""
    # Quoted: SQLAlchemy decodes % in the path and cuts it at a question mark.
    return f"sqlite:///{quote(str((root / 'mlflow.db').resolve()))}"


def mirror(store: Store, records: "Sequence[Record | StreamRecord]", uri: str, *, quiet: bool) -> None:
    """Export records to MLflow, by default to the store of the results folder, and say where to see them."""
    where = uri or default_uri(store.root)
    fresh = export(store, records, where)
    if not quiet:
        say(
            f"MLflow       {where}  ({count(fresh, 'new run')}; see it with: mlflow ui --backend-store-uri {where})"
        )


def export(
    store: Store, records: "Sequence[Record | StreamRecord]", uri: str, *, always: bool = False
) -> int:
    """Export records to MLflow and return how many were new there.

    A ledger beside the records remembers what was exported to which store, so that a run with nothing new
    doesn't wait for MLflow; always asks MLflow itself.
    """
    ledger = store.root / "exported" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.txt"
    known = set(ledger.read_text().split()) if ledger.is_file() else set()
    gone = uri.startswith("sqlite:///") and not Path(unquote(uri.removeprefix("sqlite:///"))).is_file()
    wanted = records if always or gone else [r for r in records if _entry(r) not in known]
    if not wanted:
        return 0
    from firstline.benchmark.run.tracking import sync

    def files(record: "Record | StreamRecord") -> list[Path]:
        paths = (store.record_path, store.outcomes_path, store.picture_path, store.stream_path)
        return [path(record.key) for path in paths]  # those that do not exist are left out

    fresh = sync(wanted, uri, files=files, artifacts=store.root / "mlflow-artifacts")
    write_whole(ledger, "\n".join(sorted(known | {_entry(r) for r in wanted})).encode())
    return fresh


def _entry(record: "Record | StreamRecord") -> str:
    # With its status: a failed cell that was mended by a retry is exported again.
    return f"{record.key}:{getattr(record, 'status', 'ok')}"

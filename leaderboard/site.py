"""From records to a folder of static pages that open from disk: no server, no script, no outside request."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import Record
from firstline.benchmark.core.stream_record import StreamRecord
from firstline.benchmark.metrics.stream import LASTING, TOLERANCE
from firstline.leaderboard import curves, recovery, streams, words
from firstline.leaderboard.table import VECTORS, Outcomes, Table, failure, tables

FORMAT = "firstline.board/1"
HERE = Path(__file__).parent
INDEX = "records.json"


def build(
    records: Iterable[Record],
    outcomes: Outcomes,
    out: Path,
    *,
    title: str = "firstline",
    streams: Iterable[StreamRecord] = (),
) -> Path:
    """Write the site of records and streams into the folder out, in place of an older site, and return its index.html.

    outcomes(record) loads the per-example arrays of an evasion record and may raise. The same records, in any
    order, give the same bytes. Raises FirstlineError if out holds something that is not a site of ours.
    """
    unique = {
        record.key: record for record in sorted(records, key=lambda r: (r.provenance.ended, r.to_json()))
    }
    ordered = [unique[key] for key in sorted(unique)]
    served = {stream.key: stream for stream in sorted(streams, key=StreamRecord.to_json)}
    files = _pages(tables(ordered, outcomes), ordered, list(served.values()), title)
    files |= {f"records/{record.key}.json": record.to_json() for record in ordered}
    files |= {f"streams/{key}.json": stream.to_json() for key, stream in served.items()}
    files[INDEX] = index_of(ordered, title)
    files |= {f"static/{path.name}": path.read_text("utf-8") for path in sorted((HERE / "static").iterdir())}
    folder = Path(os.path.realpath(out))
    _replace(folder, files)
    return folder / "index.html"


def index_of(records: Iterable[Record], title: str) -> str:
    """Return the small index of all records as canonical JSON: text forms, verdict and metrics."""
    return (
        canonical({"format": FORMAT, "title": title, "records": [_entry(record) for record in records]})
        + "\n"
    )


def anchor(table: Table) -> str:
    """Return the id of a table on its page: the same for the same task and threat model on every board."""
    return (
        "t-" + hashlib.sha256(canonical([table.vector, table.task, table.threat]).encode()).hexdigest()[:12]
    )


def _entry(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        "path": f"records/{record.key}.json",
        "suite": record.suite,
        "task": record.task.text,
        "defense": record.defense_text,
        "attack": record.attack.text,
        "threat": record.threat,
        "vector": record.vector,
        "seed": record.seed,
        "status": record.status,
        "error": failure(record) if record.status == "failed" else None,
        "gate": record.gate.verdict,
        "metrics": {name: metric.model_dump(mode="json") for name, metric in record.metrics.items()},
    }


def _pages(
    boards: list[Table], records: list[Record], served: list[StreamRecord], title: str
) -> dict[str, str]:
    jinja = environment()
    vectors = [vector for vector in VECTORS if any(board.vector == vector for board in boards)]
    shared = {"title": title, "vectors": vectors, "total": len(records), "streams": len(served)}
    series = streams.stream_tables(served)
    failed = [r for board in boards for row in board.rows for r in row.records if r.status == "failed"]
    counts = {
        "Tasks": len({record.task.text for record in records}),
        "Defenses": len({record.defense_text for record in records}),
        "Attacks": len({record.attack.text for record in records}),
        "Threat models": len({record.threat for record in records}),
        "Records": len(records),
        "Failed cells": len(failed),
    }
    index = jinja.get_template("index.html.j2")
    parts = {"boards": boards, "counts": counts, "failed": failed, "served": series}
    pages = {"index.html": index.render(**shared, page="index", **parts)}
    if series:
        pages["streams.html"] = jinja.get_template("streams.html.j2").render(
            **shared, page="streams", tables=series
        )
    for vector in vectors:
        template = jinja.get_template(f"{'evasion' if vector == 'evasion' else 'metrics'}.html.j2")
        own = [board for board in boards if board.vector == vector]
        pages[f"{vector}.html"] = template.render(**shared, page=vector, boards=own)
    return pages


def environment() -> Environment:
    """Return the Jinja environment of the pages: everything escaped, nothing unseen, no undefined name."""
    jinja = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,  # for every template: by file name, Jinja would not escape *.html.j2
        undefined=StrictUndefined,
        finalize=_tamed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters |= {
        "anchor": anchor,
        "breakable": words.breakable,
        "brief": words.brief,
        "command": words.command,
        "failure": failure,
        "explanation": words.explanation,
        "heading": words.heading,
        "heat": words.heat,
        "interval": words.interval,
        "meaning": words.meaning,
        "number": words.number,
    }
    jinja.globals |= {
        "VECTORS": words.VECTORS,
        "DIRECTIONS": words.DIRECTIONS,
        "RECOVERY": recovery.MEANS,
        "CURVE": (curves.WIDTH, curves.HEIGHT),
        "SERVICE": (streams.WIDTH, streams.HEIGHT),
        "TOLERANCE": TOLERANCE,
        "LASTING": LASTING,
    }
    return jinja


def _tamed(value: Any) -> Any:
    """Make unseen letters visible in whatever a template prints; what our own macros made is left alone."""
    return words.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _replace(folder: Path, files: dict[str, str]) -> None:
    """Write files beside folder, then put them in its place: a reader sees the old site or the new one."""
    if folder.exists() and not _is_ours(folder):
        raise FirstlineError(
            f"{folder} is not empty and not a leaderboard; name a new folder, or remove it first"
        )
    mark = secrets.token_hex(4)
    new, old = (folder.with_name(f".{folder.name}.{mark}.{age}") for age in ("new", "old"))
    try:
        for name, text in files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise FirstlineError(f"cannot write the leaderboard to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return f'"format":"{FORMAT}"' in (folder / INDEX).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False

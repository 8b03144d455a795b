"""Records to MLflow, one way. The only module that imports mlflow, inside functions: an import costs seconds.

Records are the truth, MLflow mirrors them. An export may be killed at any moment and simply run again: a run
in MLflow counts as exported once it has ended, and what was left running is deleted and made anew.
"""

import hashlib
import logging
import math
import os
import re
import socket
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import ItemUse, Record
from firstline.benchmark.core.stream_record import StreamRecord
from firstline.benchmark.metrics.stream import ORACLE, runs
from firstline.benchmark.run.environment import variables

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Param

EXAMPLES = "sqlite:///mlflow.db or http://localhost:5000"
FILE_STORES = ("", "file")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
# MLflow's limits; a tag may be longer today, but older servers refuse more than this.
KEY_LIMIT, NAME_LIMIT, PARAM_LIMIT, TAG_LIMIT, DIGEST_LIMIT = 250, 250, 6000, 5000, 36
PAGE = 1000
CHATTY = ("mlflow", "alembic", "urllib3")
SILENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
# MLflow's own are 7 retries of 120 s. To run the export again is the better retry; the caller's setting wins.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


def sync(
    records: Iterable[Record | StreamRecord],
    uri: str,
    *,
    files: Callable[[Record | StreamRecord], list[Path]],
    artifacts: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Return how many records were new to the MLflow store at uri, and are now in it.

    A suite becomes an experiment `firstline/<suite>`, a fitted system a parent run, a cell a child run;
    failed cells end as FAILED. A stream becomes a run of the experiment `firstline/streams`, without a parent.
    files names what to attach to a run (its record, its per-example arrays); what does not exist is left out. artifacts is the folder for these copies where no server keeps them, by
    default `mlartifacts` beside the SQLite file. progress is told (exported, to be exported) after each cell.

    Exporting twice changes nothing. Two exports into one store must not run at the same time.
    Raises FirstlineError when the store is unreachable, refuses, or has no such kind.
    """
    root = _artifact_root(uri, artifacts)
    _check_store(uri)
    cells = list({(_suite(record), record.key): record for record in records}.values())
    if not cells:
        return 0
    with _quiet():
        client = _connect(uri)
        with _explained(uri):
            books = {suite: _open(client, suite, root) for suite in sorted(set(map(_suite, cells)))}
            new = [cell for cell in cells if not books[_suite(cell)].holds(cell, client)]
            for done, cell in enumerate(new, 1):
                _export(client, books[_suite(cell)], cell, files)
                if progress:
                    progress(done, len(new))
    return len(new)


@dataclass
class _Experiment:
    """One suite in MLflow: which cells it holds, and the parent run of each fitted system."""

    id: str
    keys: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)

    def holds(self, record: Record | StreamRecord, client: "MlflowClient") -> bool:
        """Whether a record is there as it is now; the run of a failed cell that was mended since is deleted."""
        if _status(record) == "ok" and record.key in self.failed:
            client.delete_run(self.failed.pop(record.key))
            self.keys.discard(record.key)
        return record.key in self.keys


def _parts(uri: str) -> tuple[str, SplitResult]:
    """Return the kind of store ("sqlite" for "sqlite+pysqlite") and the parts of its URI."""
    try:
        parts = urlsplit(uri)
        _ = parts.port  # parsed on access
    except ValueError as error:
        raise FirstlineError(
            f"{_shown(uri)!r} is not a tracking URI: {error}; give one such as {EXAMPLES}"
        ) from None
    kind = uri if uri == "databricks" else parts.scheme.split("+")[0]  # the one store named by a bare word
    return ("", parts) if len(kind) == 1 else (kind, parts)  # C:\mlruns has a drive, not a scheme


def _shown(text: str) -> str:
    """Return text without the user names and passwords of the URIs in it."""
    return re.sub(r"//[^/@\s]*@", "//…@", text)


def _line(error: BaseException) -> str:
    """Return the first line of an error, fit to print."""
    lines = str(error).strip().splitlines()
    return _cut(_shown(lines[0]).rstrip(".") if lines else type(error).__name__, 400)


def _sqlite_file(uri: str) -> Path:
    """Return the file of a SQLite URI, read as SQLAlchemy reads it."""
    name = unquote(uri.partition(":///")[2].partition("?")[0])
    if not name or name.startswith((":memory:", "file:")):
        raise FirstlineError(f"{uri!r} names no database file; give one such as sqlite:///mlflow.db")
    return Path(name)


def _artifact_root(uri: str, artifacts: Path | None) -> Path | None:
    """Return the folder for attached files, None where the store has a place of its own.

    Without it MLflow would put the files of a database store into the current directory.
    """
    kind, _ = _parts(uri)
    if kind == "sqlite":
        return artifacts or _sqlite_file(uri).parent / "mlartifacts"
    if kind in DATABASES and artifacts is None:
        raise FirstlineError(f"the database {_shown(uri)} keeps no files; name a folder for artifacts")
    return artifacts if kind in (*DATABASES, *FILE_STORES) else None


def _check_store(uri: str) -> None:
    """Raise FirstlineError for what can be told at once: MLflow would retry for up to two minutes."""
    kind, parts = _parts(uri)
    if kind == "sqlite":
        _check_file(uri)
    elif kind in FILE_STORES:
        _check_folder(uri)
    elif kind in PORTS and parts.hostname:
        _check_host(uri, kind, parts.hostname, parts.port or PORTS[kind])


def _check_file(uri: str) -> None:
    path = _sqlite_file(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as database:
            # A write, taken back: SQLite grants the lock alone on a read-only file too.
            database.execute("BEGIN IMMEDIATE")
            database.execute("PRAGMA user_version = 0")
            database.rollback()
    except (OSError, sqlite3.Error) as error:
        raise FirstlineError(
            f"cannot write to {path}: {_line(error)}; make it writable, or export to another file"
        ) from None


def _check_folder(uri: str) -> None:
    if not uri or os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        raise FirstlineError(
            f"MLflow no longer tracks in folders, which {uri!r} asks for; give a URI such as {EXAMPLES}"
        )


def _check_host(uri: str, kind: str, host: str, port: int) -> None:
    if kind in getproxies() and not proxy_bypass(host):
        return  # only the proxy can tell
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        reason = error.strerror or _line(error)
        raise FirstlineError(
            f"nothing answers at {_shown(uri)} ({reason}); start the server or give another tracking URI"
        ) from None


def _connect(uri: str) -> "MlflowClient":
    """Return a client of the store. A fresh SQLite file is migrated here, which takes seconds."""
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # whatever the URI, its driver or its server brings up
        raise FirstlineError(
            f"MLflow cannot use {_shown(uri)}: {_line(error)}; mend it or give a URI such as {EXAMPLES}"
        ) from None
    return client


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what MLflow and the disk may raise during an export into one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise FirstlineError(
            f"the export to {_shown(uri)} stopped: {_line(error)}; run it again, and it goes on from there"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow from talking, reporting home and retrying for minutes; restore all settings afterwards."""
    settings = SILENT | {name: os.environ.get(name, value) for name, value in PATIENCE.items()}
    with variables(settings):
        import mlflow  # noqa: F401  (it sets up its loggers on import: their levels are ours only after that)

        with _muted([logging.getLogger(name) for name in CHATTY]):
            yield


@contextmanager
def _muted(loggers: list[logging.Logger]) -> Iterator[None]:
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _open(client: "MlflowClient", suite: str, root: Path | None) -> _Experiment:
    """Return the experiment of a suite, made if need be, without what a killed export left half-done."""
    name = _cut(f"firstline/{suite}", 2 * NAME_LIMIT)
    found = client.get_experiment_by_name(name)
    if found is None:
        location = (root / _key(suite)).resolve().as_uri() if root else None
        return _Experiment(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        raise FirstlineError(
            f"the experiment {name!r} was deleted in MLflow; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}`, or remove it with `mlflow gc`"
        )
    return _survey(client, _Experiment(found.experiment_id))


def _survey(client: "MlflowClient", book: _Experiment) -> _Experiment:
    """Fill in what the experiment holds. Deletes our runs that have not ended: their export was killed."""
    for run_id, status, tags in list(_runs(client, book.id)):
        key, fit = tags.get("firstline.key"), tags.get("firstline.fit")
        if status == "RUNNING" and (key or fit):
            client.delete_run(run_id)
        elif key:
            book.keys.add(key)
            if status == "FAILED":
                book.failed[key] = run_id
        elif fit:
            book.parents[fit] = run_id
    return book


def _runs(client: "MlflowClient", experiment: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield the id, status and tags of every run of an experiment that nobody deleted."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment], max_results=PAGE, page_token=token)
        for run in page:
            yield run.info.run_id, run.info.status, run.data.tags
        token = page.token
        if not token:
            return


def _export(
    client: "MlflowClient",
    book: _Experiment,
    record: Record | StreamRecord,
    files: Callable[[Record | StreamRecord], list[Path]],
) -> None:
    """Write one stream; or one cell, and before it the parent run of its system where there is none yet."""
    if isinstance(record, StreamRecord):
        name = f"{record.task.text} · {record.defense_text} · {record.attack.text} · seed {record.seed}"
        _write(client, book.id, record, name, _stream_tags(record), files)
    else:
        fit = _fit(record)
        if fit not in book.parents:
            book.parents[fit] = _write_parent(client, book.id, record, fit)
        tags = {"mlflow.parentRunId": book.parents[fit]} | _cell_tags(record)
        _write(client, book.id, record, f"{record.attack.text} · {record.threat}", tags, files)
    book.keys.add(record.key)


def _write_parent(client: "MlflowClient", experiment: str, record: Record, fit: str) -> str:
    """Return the id of a new run for the fitted system. It ends before its children start: see _survey."""
    name = f"{record.task.text} · {record.defense_text} · seed {record.seed}"
    tags = {"firstline.fit": fit} | _shared_tags(record)
    run_id = _start(client, experiment, record, name, tags)
    client.log_batch(run_id, params=_params(_system_settings(record)), synchronous=True)
    if "data" in record.stages:
        client.log_inputs(run_id, datasets=[_dataset(record)])
    client.set_terminated(run_id, "FINISHED", _millis(record.provenance.ended))
    return run_id


def _write(
    client: "MlflowClient",
    experiment: str,
    record: Record | StreamRecord,
    name: str,
    tags: dict[str, str],
    files: Callable[[Record | StreamRecord], list[Path]],
) -> None:
    run_id = _start(client, experiment, record, name, _shared_tags(record) | tags)
    client.log_batch(
        run_id, metrics=_metrics(record), params=_params(_run_settings(record)), synchronous=True
    )
    for path in files(record):
        if path.exists():
            client.log_artifact(run_id, str(path))
    status = "FINISHED" if _status(record) == "ok" else "FAILED"
    client.set_terminated(run_id, status, _millis(record.provenance.ended))


def _start(
    client: "MlflowClient",
    experiment: str,
    record: Record | StreamRecord,
    name: str,
    tags: dict[str, str],
) -> str:
    run = client.create_run(
        experiment,
        start_time=_millis(record.provenance.started),
        tags={key: _cut(value, TAG_LIMIT) for key, value in tags.items()},
        run_name=_cut(name, NAME_LIMIT),
    )
    return str(run.info.run_id)


def _fit(record: Record) -> str:
    """Return the key of the fitted system, or of the repaired one; without, the digest of what was to be fitted."""
    system = [record.task.model_dump(), [layer.model_dump() for layer in record.defense], record.seed]
    made = record.stages.get("repair") or record.stages.get("fit")
    return made or hashlib.sha256(canonical(system).encode()).hexdigest()


def _suite(record: Record | StreamRecord) -> str:
    """Return what the experiment is named by."""
    return record.suite if isinstance(record, Record) else "streams"


def _status(record: Record | StreamRecord) -> str:
    return record.status if isinstance(record, Record) else "ok"


def _shared_tags(record: Record | StreamRecord) -> dict[str, str]:
    return {
        "firstline.suite": _suite(record),
        "firstline.task": record.task.text,
        "firstline.defense": record.defense_text,
    }


def _cell_tags(record: Record) -> dict[str, str]:
    tags = {
        "firstline.key": record.key,
        "firstline.status": record.status,
        "firstline.vector": record.vector,
        "firstline.attack": record.attack.text,
        "firstline.threat": record.threat,
        "firstline.gate": record.gate.verdict,
        "firstline.blind": canonical(record.isolation.blind),
    }
    if record.error:
        error = record.error
        tags["firstline.error"] = f"{error.kind}: {error.type} in {error.stage}: {error.message}"
    return tags


def _stream_tags(record: StreamRecord) -> dict[str, str]:
    return {
        "firstline.key": record.key,
        "firstline.status": "ok",
        "firstline.vector": record.threat.partition("/")[0],
        "firstline.attack": record.attack.text,
        "firstline.threat": record.threat,
    }


def _system_settings(record: Record | StreamRecord) -> Iterator[tuple[str, Any]]:
    yield from _settings("task", record.task)
    for layer in record.defense:
        yield from _settings(f"defense.{layer.name}", layer)
    yield "seed", record.seed
    yield "version.firstline", record.provenance.firstline


def _run_settings(record: Record | StreamRecord) -> Iterator[tuple[str, Any]]:
    yield from _system_settings(record)
    yield from _settings("attack", record.attack)
    yield "threat", record.threat
    if isinstance(record, StreamRecord):
        yield from _flat("shape", record.shape.model_dump())


def _settings(prefix: str, item: ItemUse) -> Iterator[tuple[str, Any]]:
    yield prefix, item.text
    yield f"version.{prefix}", item.version
    yield from _flat(prefix, item.settings)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested settings under dotted names; a list is a leaf.

    >>> list(_flat("attack", {"steps": 40, "loss": {"name": "ce"}}))
    [('attack.steps', 40), ('attack.loss.name', 'ce')]
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}", inner)
    else:
        yield prefix, value


def _params(settings: Iterable[tuple[str, Any]]) -> list["Param"]:
    from mlflow.entities import Param

    taken: set[str] = set()
    return [
        Param(_key(name, taken), _cut(value if isinstance(value, str) else canonical(value), PARAM_LIMIT))
        for name, value in settings
    ]


def _series(record: Record) -> Iterator[tuple[str, list[float | None]]]:
    """Yield every number of a record as a named series; what is not a curve is a series of one."""
    for name, metric in record.metrics.items():
        yield name, [metric.value]
        yield f"{name}.lo", [metric.lo]
        yield f"{name}.hi", [metric.hi]
    for name, curve in record.curves.items():
        label = (
            f"curve.{name}" if name in record.metrics else name
        )  # else its last point would pass for the metric
        yield label, [y for _, y in curve]
        yield f"{label}.x", [x for x, _ in curve]
    for name, value in record.diagnostics.items():
        yield f"diagnostics.{name}", [value]
    for name, value in record.cost.model_dump().items():
        yield f"cost.{name}", [value]


def _stream_series(record: StreamRecord) -> Iterator[tuple[str, list[float | None]]]:
    """Yield every number of a stream as a named series: figures, and curves by window."""
    for run in runs([record]):
        prefix = "oracle." if run.defense == ORACLE else ""
        for name, value in asdict(run.course).items():
            yield prefix + name, list(value) if name == "service" else [value]
    yield "service.usual", [window.usual / window.inputs for window in record.windows]
    yield "alarm", [float(window.alarm) for window in record.windows]
    for name in ("steps", "samples", "seconds", "relapse", "relapse_without_repair"):
        yield name, [getattr(record, name)]


def _metrics(record: Record | StreamRecord) -> list["Metric"]:
    from mlflow.entities import Metric

    taken: set[str] = set()
    series = _series(record) if isinstance(record, Record) else _stream_series(record)
    when = _millis(record.provenance.ended)
    return [
        Metric(key, float(value), when, step)
        for key, values in [(_key(name, taken), values) for name, values in series]
        for step, value in enumerate(values)
        if value is not None and math.isfinite(value)  # MLflow would store infinity as 1.8e308
    ]


def _dataset(record: Record) -> "DatasetInput":
    """Return the task's data as a run's input: name and digest, no arrays (mlflow.data takes 0.75 s)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=_cut(record.task.text, 2 * NAME_LIMIT),
        digest=record.stages["data"][:DIGEST_LIMIT],
        source_type="code",
        source=canonical({"tags": {"firstline.task": record.task.name}}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])


def _key(name: str, taken: set[str] | None = None) -> str:
    """Return name in the characters that every MLflow store accepts in keys, and unlike those already taken.

    >>> taken = set()
    >>> _key("acc@eps=0.1", taken), _key("acc@eps,0.1", taken), _key("../up", taken)
    ('acc_eps_0.1', 'acc_eps_0.1-2', '_up')
    """
    base = re.sub(r"[^\w.\- ]", "_", name).lstrip(".")[: KEY_LIMIT - 10] or "_"
    key, count = base, 1
    while taken is not None and key in taken:
        count += 1
        key = f"{base}-{count}"
    if taken is not None:
        taken.add(key)
    return key


def _cut(text: str, limit: int) -> str:
    """Return text no longer than limit, without what a database may refuse: NUL and lone surrogates."""
    clean = text.replace("\0", "�").encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _millis(moment: str) -> int:
    """Return an ISO time, UTC where it names no zone, in milliseconds since 1970; 0 if it is no time."""
    try:
        when = datetime.fromisoformat(moment)
    except ValueError:
        return 0
    return max(0, int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000))

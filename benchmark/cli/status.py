"""firstline status: what a results folder holds."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from firstline.benchmark.cli.options import RESULTS, Json, Results
from firstline.benchmark.cli.run import failure_line
from firstline.benchmark.cli.show_text import count, say, say_json, table
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.run.store import Store

if TYPE_CHECKING:
    from firstline.benchmark.core.record import Record
    from firstline.benchmark.core.stream_record import StreamRecord

Found = TypeVar("Found")


def status(
    results: Results = RESULTS,
    keys: Annotated[
        bool, typer.Option("--keys", help="List every record and stream with the start of its key.")
    ] = False,
    json: Json = False,
) -> None:
    """Count the records and streams of a results folder, and name the failed and the damaged ones."""
    store, damaged = Store(results), list[str]()
    records = _sound(store.read, store.record_keys(), damaged)
    streams = _sound(store.read_stream, store.stream_keys(), damaged)
    failed = [record for record in records if record.status == "failed"]
    if json:
        say_json(
            {
                "records": [
                    {
                        "key": r.key,
                        "suite": r.suite,
                        "task": r.task.text,
                        "defense": r.defense_text,
                        "attack": r.attack.text,
                        "threat": r.threat,
                        "seed": r.seed,
                        "status": r.status,
                        "gate": r.gate.verdict,
                    }
                    for r in records
                ],
                "streams": [
                    {
                        "key": s.key,
                        "task": s.task.text,
                        "defense": s.defense_text,
                        "attack": s.attack.text,
                        "threat": s.threat,
                        "seed": s.seed,
                    }
                    for s in streams
                ],
                "damaged": damaged,
            }
        )
        return
    if not records and not streams and not damaged:
        say(f"{results} holds no records; `firstline run quick` makes some")
        return
    if records or damaged:
        say(table(["SUITE", "TASK", "OK", "FAILED", "VECTOR"], _counts(records)))
    if keys:
        rows = [_line(r, r.status) for r in records] + [_line(s, "stream") for s in streams]
        say("\n" + table(["KEY", "STATUS", "ATTACK", "THREAT", "SEED", "SYSTEM"], rows))
    for record in failed:
        say(f"{record.key[:12]} {failure_line(record)}")
    for problem in damaged:
        say(f"damaged: {problem}")
    served = f"{count(len(streams), 'stream')}, " if streams else ""
    say(
        f"\n{count(len(records), 'record')}, {served}{len(failed)} failed, {len(damaged)} damaged, in {results}"
    )


def _line(record: "Record | StreamRecord", status: str) -> list[str]:
    system = f"{record.task.text} · {record.defense_text}"
    return [record.key[:12], status, record.attack.text, record.threat, str(record.seed), system]


def _sound(read: Callable[[str], Found], keys: Iterable[str], damaged: list[str]) -> list[Found]:
    """What can be read of keys; the rest is told to damaged."""
    found = []
    for key in keys:
        try:
            found.append(read(key))
        except FirstlineError as error:
            damaged.append(str(error))
    return found


def _counts(records: "list[Record]") -> list[list[str]]:
    found: dict[tuple[str, str, str], list[int]] = {}
    for record in records:
        row = found.setdefault((record.suite, record.task.text, record.vector), [0, 0])
        row[record.status == "failed"] += 1
    return [[s, t, str(ok), str(bad), v] for (s, t, v), (ok, bad) in sorted(found.items())]

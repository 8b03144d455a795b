"""firstline status: what a results folder holds."""

from typing import TYPE_CHECKING, Annotated

import typer

from firstline.benchmark.cli.options import RESULTS, Json, Results
from firstline.benchmark.cli.run import failure_line
from firstline.benchmark.cli.show_text import count, say, say_json, table
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.run.store import Store

if TYPE_CHECKING:
    from firstline.benchmark.core.record import Record


def status(
    results: Results = RESULTS,
    keys: Annotated[
        bool, typer.Option("--keys", help="List every record with the start of its key.")
    ] = False,
    json: Json = False,
) -> None:
    """Count the records of a results folder per suite and task, and name the failed and the damaged ones."""
    store, records, damaged = Store(results), [], []
    for key in store.record_keys():
        try:
            records.append(store.read(key))
        except FirstlineError as error:
            damaged.append(str(error))
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
                "damaged": damaged,
            }
        )
        return
    if not records and not damaged:
        say(f"{results} holds no records; `firstline run quick` makes some")
        return
    say(table(["SUITE", "TASK", "OK", "FAILED", "VECTOR"], _counts(records)))
    if keys:
        rows = [
            [r.key[:12], r.status, r.attack.text, r.threat, str(r.seed), f"{r.task.text} · {r.defense_text}"]
            for r in records
        ]
        say("\n" + table(["KEY", "STATUS", "ATTACK", "THREAT", "SEED", "SYSTEM"], rows))
    for record in failed:
        say(f"{record.key[:12]} {failure_line(record)}")
    for problem in damaged:
        say(f"damaged: {problem}")
    say(f"\n{count(len(records), 'record')}, {len(failed)} failed, {len(damaged)} damaged, in {results}")


def _counts(records: "list[Record]") -> list[list[str]]:
    found: dict[tuple[str, str, str], list[int]] = {}
    for record in records:
        row = found.setdefault((record.suite, record.task.text, record.vector), [0, 0])
        row[record.status == "failed"] += 1
    return [[s, t, str(ok), str(bad), v] for (s, t, v), (ok, bad) in sorted(found.items())]

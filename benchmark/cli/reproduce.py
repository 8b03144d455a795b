"""firstline reproduce: a paper's numbers beside ours, or a record measured again."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from firstline.benchmark.cli import options
from firstline.benchmark.cli.finish import sound_records, warn
from firstline.benchmark.cli.options import RESULTS, Json
from firstline.benchmark.cli.run import failure_line, run_plan
from firstline.benchmark.cli.show_text import say, say_json, table
from firstline.benchmark.core import catalog
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run import keys
from firstline.benchmark.run.matrix import Matrix, Selection, expand
from firstline.benchmark.run.recipe import PaperRecipe, Verdict, find_recipe, judge
from firstline.benchmark.run.runner import make_plan, workers
from firstline.benchmark.run.store import Store, write_whole

# What two runs of one cell must agree on; the rest says when, where and by which commit it was run.
COMPARED = ("key", "status", "metrics", "unresolved", "curves", "diagnostics", "gate", "outcomes")
STREAMED = ("windows", "steps", "samples", "relapse", "relapse_without_repair")


def is_key(text: str) -> bool:
    """Whether text can be the start of a record's key."""
    return len(text) >= 4 and all(letter in "0123456789abcdef" for letter in text)


def reproduce(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe (`firstline list recipes`), a path to one, or the start of a record's key."
        ),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="The published checkpoint, where the recipe needs one.")
    ] = None,
    results: options.Results = RESULTS,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    jobs: options.Jobs = 0,
    json: Json = False,
) -> None:
    """Run a paper's recipe, or a record's cell again, and print the numbers side by side with a verdict.

    `reproduced` is within the recipe's tolerance, `within interval` means that the paper's number lies in our
    95% interval, `differs` neither. Exits with 1 unless all are reproduced or within the interval.
    """
    from firstline.benchmark.run.pool import LocalPool

    if is_key(recipe):
        store = Store(results)
        key = store.find(recipe)
        (_served_again if store.stream_path(key).exists() else _again)(store, key, data_dir, json)
        return
    paper = find_recipe(recipe)
    _import(paper, weights)
    where, store = keys.resolve_device(device), Store(results)
    plan = make_plan(expand(paper.suite, catalog.load(), Selection(), where, data_dir), store, retry=True)
    run_plan(plan, LocalPool(workers(jobs, where)), results, data_dir, blind=True, quiet=json)
    done = [keys.key(keys.cell_preimage(cell)) for cell in plan.matrix.cells]
    records = sound_records(store, [key for key in done if store.record_path(key).is_file()])
    for record in records:
        if record.status == "failed":
            raise FirstlineError(failure_line(record))
    verdicts = judge(paper, records)
    write_whole(results / "papers" / f"{paper.name}.json", _result(paper, verdicts).encode())
    say_json([asdict(v) for v in verdicts]) if json else say(_render(paper, verdicts))
    if any(v.verdict in ("differs", "missing") for v in verdicts):
        raise typer.Exit(1)


def _served_again(store: Store, key: str, folder: Path | None, json: bool) -> None:
    """Serve a stream anew in a folder of its own, and compare everything but the times."""
    from tempfile import TemporaryDirectory

    from firstline.benchmark.run.stream import cells, streams

    old = store.read_stream(key)
    device, found = old.environment.device.partition(":")[0], catalog.load()
    cell = cells(
        old.task.text,
        [old.defense_text],
        old.attack.text,
        Threat.parse(old.threat),
        [old.seed],
        device,
        found,
        folder,
    )[-1]
    if keys.key(keys.stream_preimage(cell, old.shape.model_dump())) != key:
        raise FirstlineError(
            f"stream {key[:12]} was served by other code, or in another numeric environment: use the firstline "
            f"that wrote it ({old.provenance.firstline}, commit {old.provenance.commit or 'unknown'})"
        )
    with TemporaryDirectory(prefix="firstline-") as place:
        (new,) = streams([cell], old.shape, Store(Path(place)), folder, warn)
    differ = [name for name in STREAMED if getattr(old, name) != getattr(new, name)]
    rows = [
        [str(number), f"{before.right} of {before.inputs}", f"{after.right} of {after.inputs}"]
        for number, (before, after) in enumerate(zip(old.windows, new.windows, strict=True))
    ]
    if json:
        say_json({"key": key, "same": not differ, "differ": differ, "new": new.model_dump(mode="json")})
    else:
        say(table(["WINDOW", "RECORD", "NOW"], rows))
    _conclude(differ, json)


def _conclude(differ: list[str], json: bool) -> None:
    """Say whether a second measurement agrees. Exits with 1 where it doesn't."""
    if not json:
        verdict = (
            f"differs in {', '.join(differ)}" if differ else "the same, in every number and every example"
        )
        say("\n" + verdict)
    if differ:
        raise typer.Exit(1)


def _result(paper: PaperRecipe, verdicts: list[Verdict]) -> str:
    """What the leaderboard shows of a recipe: its words, and the paper's numbers beside ours."""
    from json import dumps

    found = {name: getattr(paper, name) for name in ("name", "title", "source", "read_at", "deviations")}
    return dumps({**found, "verdicts": [asdict(v) for v in verdicts]}, indent=2, sort_keys=True) + "\n"


def _again(store: Store, key: str, folder: Path | None, json: bool) -> None:
    """Measure a record's cell anew in a folder of its own, and compare everything but the times."""
    from tempfile import TemporaryDirectory

    from firstline.benchmark.run.pool import LocalPool
    from firstline.benchmark.run.recording import cell_of

    old = store.read(key)
    cell = cell_of(old, catalog.load())
    blind = old.isolation.blind
    with TemporaryDirectory(prefix="firstline-") as place:
        plan = make_plan(Matrix(cells=[cell]), Store(Path(place)), blind=blind)
        run_plan(plan, LocalPool(1), Path(place), folder, blind=blind, quiet=json)
        new = Store(Path(place)).read(keys.key(keys.cell_preimage(cell, blind=blind)))
    if new.status == "failed" and old.status == "ok":
        raise FirstlineError(failure_line(new))
    before, after = old.timeless(), new.timeless()
    differ = [name for name in COMPARED if before[name] != after[name]]
    rows = [
        [name, f"{m.value:.6g}", f"{new.metrics[name].value:.6g}" if name in new.metrics else "-"]
        for name, m in sorted(old.metrics.items())
    ]
    if json:
        say_json({"key": old.key, "same": not differ, "differ": differ, "new": new.model_dump(mode="json")})
    else:
        say(cell.label + "\n")
        say(table(["METRIC", "RECORD", "NOW"], rows))
    _conclude(differ, json)


def _import(paper: PaperRecipe, weights: Path | None) -> None:
    if weights is not None and paper.weights is None:
        raise FirstlineError(f"recipe {paper.name} trains its own systems and takes no --weights")
    if paper.weights is None:
        return
    if weights is not None:
        from firstline.benchmark.run.weights import import_weights

        import_weights(weights, paper.weights.sha256)
        return
    from firstline.benchmark.core.places import weights_path

    names = [
        dict(layer.settings).get("sha256", "")
        for b in paper.suite.blocks
        for stack in b.defenses
        for layer in stack
    ]
    if not all(weights_path(name).is_file() for name in names if name):
        raise FirstlineError(
            f"recipe {paper.name} needs the published weights: get {paper.weights.file} from {paper.weights.source} "
            f"and pass --weights {paper.weights.file}"
        )


def _render(paper: PaperRecipe, verdicts: list[Verdict]) -> str:
    rows = [
        [
            v.what,
            f"{v.paper:g}%",
            "-" if v.measured is None else f"{v.measured:.2f}%",
            "" if v.lo is None or v.hi is None else f"{v.lo:.2f} to {v.hi:.2f}",
            v.verdict,
        ]
        for v in verdicts
    ]
    lines = [f"{paper.title}", f"{paper.source}; figures read at: {paper.read_at}", ""]
    lines.append(table(["", "PAPER", "MEASURED", "95% INTERVAL", "VERDICT"], rows))
    lines += ["", *(f"deviation: {deviation}" for deviation in paper.deviations)]
    return "\n".join(lines)

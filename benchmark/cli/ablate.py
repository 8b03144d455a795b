"""firstline ablate: what each layer of a defense stack adds."""

from typing import TYPE_CHECKING, Annotated

import typer

from firstline.benchmark.cli import options
from firstline.benchmark.cli.finish import records_of
from firstline.benchmark.cli.options import RESULTS, Json
from firstline.benchmark.cli.plan import headline
from firstline.benchmark.cli.run import failure_line, run_plan
from firstline.benchmark.cli.show_text import count, say, say_json, table
from firstline.benchmark.core import catalog
from firstline.benchmark.core.ref import Ref, parse_stack
from firstline.benchmark.run import keys
from firstline.benchmark.run.ablation import ablation, without
from firstline.benchmark.run.estimate import estimate, read_timings
from firstline.benchmark.run.matrix import Selection, expand, use
from firstline.benchmark.run.runner import make_plan, workers
from firstline.benchmark.run.store import Store

if TYPE_CHECKING:
    from firstline.leaderboard.pairs import Difference

HEAD = ["ADDS", "WITH", "WITHOUT", "ONLY WITH", "ONLY WITHOUT", "P (HOLM)", "CLEAN", "LAYER"]


def ablate(
    stack: Annotated[str, typer.Argument(help="A defense stack, such as adversarial-training+input-noise.")],
    task: Annotated[list[str] | None, typer.Option("-t", "--task", help="On these tasks.")] = None,
    attack: Annotated[list[str] | None, typer.Option("-a", "--attack", help="Under these attacks.")] = None,
    threat: Annotated[
        list[str] | None,
        typer.Option("-m", "--threat", help="Under these threat models; else white-box at the task's radii."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option("-s", "--seed", min=0, help="With these seeds.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Test examples per cell.")] = 300,
    results: options.Results = RESULTS,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    jobs: options.Jobs = 0,
    json: Json = False,
) -> None:
    """Run a stack and all its leave-one-out sub-stacks, and say what each layer adds.

    By default on `digits` under `standard`, three seeds. A layer adds what the stack holds with it, less what
    the rest holds without it, in the worst case over attacks. The p-value is McNemar's exact test on the same
    examples, corrected by Holm over all lines. Records that exist already are reused.
    """
    from firstline.benchmark.run.pool import LocalPool

    # Imported here: scipy takes half a second, which no other command should wait for.
    from firstline.leaderboard.pairs import differences

    layers, known = parse_stack(stack), catalog.load()
    wanted = ablation(
        layers,
        task or ["digits"],
        attack or ["standard"],
        threat or [],
        tuple(dict.fromkeys(seed or (0, 1, 2))),
        examples,
        known,
    )
    where, store = keys.resolve_device(device), Store(results)
    plan = make_plan(expand(wanted, known, Selection(), where, data_dir), store)
    number = workers(jobs, where)
    if not json:
        say(headline(plan, *estimate(plan.groups, read_timings(results), number)))
    stopped = run_plan(plan, LocalPool(number), results, data_dir, blind=True, quiet=json)
    cells = plan.matrix.cells
    records = records_of(store, cells, blind=True)
    sound = [record for record in records if record.status == "ok" and record.vector == "evasion"]

    def text(these: tuple[Ref, ...]) -> str:
        return "+".join(use(known.get("defense", layer.name), layer).text for layer in these)

    left_out = {text(rest): text((layer,)) for layer, rest in without(layers)}
    found = differences(sound, store.outcomes, [(text(layers), rest) for rest in left_out])
    if json:
        say_json([{"layer": left_out[d.b], **d._asdict()} for d in found])
    else:
        for record in records:
            if record.status == "failed":
                say(failure_line(record))
        say()
        for task_name, threat_name in dict.fromkeys((d.task, d.threat) for d in found):
            here = [d for d in found if (d.task, d.threat) == (task_name, threat_name)]
            say(f"{task_name} · {threat_name}")
            say(table(HEAD, [_row(d, left_out[d.b]) for d in here]))
            say()
        say(f"{count(len(sound), 'record')} of {count(len(cells), 'cell')} in {results / 'records'}")
    if stopped:
        raise typer.Exit(130)
    if len(sound) < len(cells):
        raise typer.Exit(1)


def _row(d: "Difference", layer: str) -> list[str]:
    return [
        f"{100 * (d.first - d.second):+.1f}",
        f"{d.first:.1%}",
        f"{d.second:.1%}",
        str(d.only_first),
        str(d.only_second),
        f"{d.p:.2g}",
        f"{100 * (d.clean_first - d.clean_second):+.1f}",
        layer,
    ]

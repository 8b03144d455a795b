"""firstline stream: what an attack costs a system in service, when it is noticed, and when service is back."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from firstline.benchmark.cli import options
from firstline.benchmark.cli.finish import mirror, warn
from firstline.benchmark.cli.options import RESULTS, Json
from firstline.benchmark.cli.show_text import count, say, say_json, table
from firstline.benchmark.core import catalog
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run import keys
from firstline.benchmark.run.store import Store

if TYPE_CHECKING:
    from firstline.benchmark.metrics.stream import Line

HEAD = ["BACK", "AFTER", "DROP", "LOSS", "SEEN", "DELAY", "FALSE", "ROWS", "CPU S", "RELAPSE", "DEFENSE"]
BARS = "▁▂▃▄▅▆▇█"


def stream(
    defense: Annotated[
        list[str], typer.Argument(help="Defense stacks, such as mahalanobis or strip+unlearning.")
    ],
    attack: Annotated[str, typer.Option("-a", "--attack", help="An evasion attack, or a backdoor.")] = "pgd",
    threat: Annotated[
        str, typer.Option("-m", "--threat", help="The attack's threat model.")
    ] = "evasion/white/linf:0.125",
    task: Annotated[str, typer.Option("-t", "--task", help="On this task.")] = "digits",
    seed: Annotated[list[int] | None, typer.Option("-s", "--seed", min=0, help="With these seeds.")] = None,
    size: Annotated[int, typer.Option(min=1, max=1_000_000, help="Test examples per window.")] = 25,
    before: Annotated[int, typer.Option(min=1, help="Honest windows before the attack.")] = 6,
    during: Annotated[
        int, typer.Option(min=1, help="Windows of an evasion wave; a backdoor stays to the end.")
    ] = 8,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Attacked inputs of a window, as a share.")
    ] = 0.5,
    fpr: Annotated[
        float, typer.Option(min=0, max=0.5, help="Honest windows that may raise an alarm, as a share.")
    ] = 0.01,
    results: options.Results = RESULTS,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    mlflow: options.Mlflow = "",
    no_mlflow: options.NoMlflow = False,
    json: Json = False,
) -> None:
    """Serve test examples in windows: honest ones, then an evasion wave or a backdoored update.

    A detector's scores, or a monitor's flags, raise alarms at a common false-alarm rate; at the first since the
    last update the defense repairs, if it can. `none` and the instant oracle stand beside it. BACK counts the
    seeds in which service came back for good, AFTER is the restricted mean of the windows until then, LOSS the
    mean accuracy lost from the attack on; SEEN and DELAY say the same of the alarm. Each stream is a record in the
    results folder: the same command again reuses it, and `firstline leaderboard` shows it.
    """
    # Imported here: torch and Numba take seconds, which no other command should wait for.
    from firstline.benchmark.core.stream_record import Shape
    from firstline.benchmark.metrics.stream import lines, runs
    from firstline.benchmark.run.stream import cells, streams

    against, where, store = Threat.parse(threat), keys.resolve_device(device), Store(results)
    seeds = tuple(dict.fromkeys(seed or (0, 1, 2)))
    wanted = cells(task, defense, attack, against, seeds, where, catalog.load(), data_dir)
    shape = Shape(size=size, before=before, during=during, share=share, fpr=fpr)
    records = streams(wanted, shape, store, data_dir, warn)
    found = runs(records)
    if json:
        say_json(
            {
                "runs": [asdict(run) for run in found],
                "defenses": [_described(line) for line in lines(found)],
            }
        )
    else:
        say(f"{task} · {wanted[0].attack.text} · {against} · {share:.0%} of {size} inputs per window")
        say()
        say(table(HEAD, [_row(line) for line in lines(found)]))
        say()
        say(table(["SERVICE", "DEFENSE"], [[_bars(line), line.defense] for line in lines(found)]))
        say()
        say(f"{count(len(records), 'stream')} in {results / 'streams'}")
    if not no_mlflow:
        mirror(store, records, mlflow, quiet=json)


def _described(line: "Line") -> dict[str, object]:
    parts = {k: v._asdict() if hasattr(v, "_asdict") else v for k, v in line.summary._asdict().items()}
    return asdict(line) | {"summary": parts}


def _row(line: "Line") -> list[str]:
    s = line.summary
    return [
        f"{line.seeds - line.lost}/{line.seeds}",
        f"{s.recovery:.1f}",
        f"{100 * s.drop:.1f}",
        f"{100 * s.loss:.1f}",
        f"{line.seeds - line.unseen}/{line.seeds}",
        f"{s.delay:.1f}",
        f"{s.false_alarms}/{s.calm}",
        f"{line.samples:,.0f}",
        f"{line.seconds:.1f}",
        "" if line.relapse is None else f"{100 * line.relapse:.1f}",
        line.defense,
    ]


def _bars(line: "Line") -> str:
    """The mean accuracy of each window, from 0 to 1."""
    return "".join(BARS[min(len(BARS) - 1, int(level * len(BARS)))] for level in line.summary.service)

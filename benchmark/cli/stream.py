"""firstline stream: what an attack costs a system in service, when it is noticed, and when service is back."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from firstline.benchmark.cli import options
from firstline.benchmark.cli.options import Json
from firstline.benchmark.cli.show_text import say, say_json, table
from firstline.benchmark.core import catalog
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run import keys

if TYPE_CHECKING:
    from firstline.benchmark.run.stream import Line

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
    size: Annotated[int, typer.Option(min=1, help="Test examples per window.")] = 25,
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
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    json: Json = False,
) -> None:
    """Serve test examples in windows: honest ones, then an evasion wave or a backdoored update.

    A detector's scores, or a monitor's flags, raise alarms at a common false-alarm rate; at the first since the
    last update the defense repairs, if it can. `none` and the instant oracle stand beside it. BACK counts the
    seeds in which service came back for good, AFTER is the restricted mean of the windows until then, LOSS the
    mean accuracy lost from the attack on; SEEN and DELAY say the same of the alarm. Nothing is stored.
    """
    # Imported here: torch and Numba take seconds, which no other command should wait for.
    from firstline.benchmark.protocols.live import Shape
    from firstline.benchmark.run.stream import blueprints, lines, streams

    against, where = Threat.parse(threat), keys.resolve_device(device)
    built, attacking = blueprints(task, defense, attack, against, where, catalog.load())
    shape = Shape(size, before, during, share, fpr)
    seeds = tuple(dict.fromkeys(seed or (0, 1, 2)))
    runs = streams(built, attacking, against, seeds, shape, data_dir)
    found = lines(runs)
    if json:
        say_json({"runs": [asdict(run) for run in runs], "defenses": [_described(line) for line in found]})
        return
    say(f"{task} · {attacking.text} · {against} · {share:.0%} of {size} inputs per window")
    say()
    say(table(HEAD, [_row(line, len(seeds)) for line in found]))
    say()
    say(table(["SERVICE", "DEFENSE"], [[_bars(line), line.defense] for line in found]))


def _described(line: "Line") -> dict[str, object]:
    parts = {k: v._asdict() if hasattr(v, "_asdict") else v for k, v in line.summary._asdict().items()}
    return asdict(line) | {"summary": parts}


def _row(line: "Line", seeds: int) -> list[str]:
    s = line.summary
    return [
        f"{round(s.recovered.value * seeds)}/{seeds}",
        f"{s.recovery:.1f}",
        f"{100 * s.drop:.1f}",
        f"{100 * s.loss:.1f}",
        f"{round(s.detected.value * seeds)}/{seeds}",
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

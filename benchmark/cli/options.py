"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from firstline.benchmark.run.matrix import Selection

Suite = Annotated[
    str, typer.Argument(help="A suite by name (`firstline list suites`) or a path to a .toml file.")
]
Task = Annotated[
    list[str] | None, typer.Option("-t", "--task", help="Only tasks that match this glob; repeatable.")
]
Defense = Annotated[list[str] | None, typer.Option("-d", "--defense", help="Only defense stacks that match.")]
Attack = Annotated[list[str] | None, typer.Option("-a", "--attack", help="Only attacks that match.")]
Threat = Annotated[list[str] | None, typer.Option("-m", "--threat", help="Only threat models that match.")]
Seeds = Annotated[
    list[int] | None,
    typer.Option("-s", "--seed", min=0, help="These seeds instead of the suite's; repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("-x", "--exclude", help="Leave out, such as attack=pgd*; repeatable.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Jobs = Annotated[int, typer.Option(min=0, help="Worker processes; 0 is one per core.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
Results = Annotated[
    Path,
    typer.Option(
        envvar="FIRSTLINE_RESULTS", help="Folder of records, fitted systems, board and MLflow store."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="FIRSTLINE_DATA",
        help="Folder with data sets as torchvision or `datasets` lay them out; "
        "without it they are downloaded.",
    ),
]
Mlflow = Annotated[
    str, typer.Option(help="MLflow tracking URI; by default a SQLite file in the results folder.")
]
NoMlflow = Annotated[bool, typer.Option("--no-mlflow", help="Export nothing to MLflow.")]
NotBlind = Annotated[
    bool,
    typer.Option(
        "--not-blind", help="Score in the attack's own process: faster to debug, and not comparable."
    ),
]

RESULTS = Path("runs")


def selection(
    task: list[str] | None,
    defense: list[str] | None,
    attack: list[str] | None,
    threat: list[str] | None,
    seed: list[int] | None,
    exclude: list[str] | None,
) -> Selection:
    """Return the selection that these options make."""
    return Selection(
        task=tuple(task or ()),
        defense=tuple(defense or ()),
        attack=tuple(attack or ()),
        threat=tuple(threat or ()),
        seeds=tuple(dict.fromkeys(seed or ())),
        exclude=tuple(exclude or ()),
    )

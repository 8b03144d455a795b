"""The `firstline` command."""

import sys

import typer

from firstline import __version__
from firstline.benchmark.cli import (
    ablate,
    check,
    compare,
    doctor,
    leaderboard,
    list,
    mlflow,
    new,
    plan,
    reproduce,
    run,
    show,
    status,
    stream,
    vulnerability,
)
from firstline.benchmark.core.errors import FirstlineError

app = typer.Typer(
    help="Benchmark defenses of machine-learning systems: pair them with attacks, measure, compare, publish.",
    epilog="Start with: firstline plan quick, then firstline run quick.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("list")(list.list_items)
app.command()(show.show)
app.command()(plan.plan)
app.command()(run.run)
app.command()(status.status)
app.command()(compare.compare)
app.command()(ablate.ablate)
app.command()(vulnerability.vulnerability)
app.command()(stream.stream)
app.add_typer(leaderboard.app, name="leaderboard")
app.command()(reproduce.reproduce)
app.command()(check.check)
app.command()(new.new)
app.command()(doctor.doctor)
app.add_typer(mlflow.app, name="mlflow")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"firstline {__version__}\n")
        raise typer.Exit


@app.callback()
def top(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Benchmark defenses of machine-learning systems: pair them with attacks, measure, compare, publish."""


def main() -> None:
    """Run the command line; a FirstlineError is one line on standard error and exit code 2."""
    try:
        app()
    except FirstlineError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)

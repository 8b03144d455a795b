"""firstline mlflow: export records."""

from typing import Annotated

import typer

from firstline.benchmark.cli.finish import default_uri, export, sound_records, sound_streams
from firstline.benchmark.cli.options import RESULTS, Results
from firstline.benchmark.cli.show_text import count, say
from firstline.benchmark.run.store import Store

app = typer.Typer(help="Export records to MLflow.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Export records to MLflow."""


@app.command()
def sync(
    results: Results = RESULTS,
    uri: Annotated[
        str, typer.Option(help="Tracking URI; by default a SQLite file in the results folder.")
    ] = "",
) -> None:
    """Export every record, of cells and of streams, that the tracking store does not have yet. Doing it twice changes nothing."""
    store = Store(results)
    where = uri or default_uri(results)
    fresh = export(store, [*sound_records(store), *sound_streams(store)], where, always=True)
    say(f"{count(fresh, 'new run')} in {where}; see them with: mlflow ui --backend-store-uri {where}")

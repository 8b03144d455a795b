"""firstline leaderboard: records to static pages."""

from pathlib import Path
from typing import Annotated

import typer

from firstline.benchmark.cli.finish import build_board, sound_records
from firstline.benchmark.cli.options import RESULTS, Results
from firstline.benchmark.cli.show_text import say
from firstline.benchmark.run.store import Store


def leaderboard(
    results: Results = RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; by default `board` in the results folder.")
    ] = None,
    title: Annotated[str, typer.Option(help="The site's name.")] = "firstline",
) -> None:
    """Build the leaderboard: a folder of pages that open from disk and ask no other machine for anything."""
    store = Store(results)
    records = sound_records(store)
    say(str(build_board(store, records, out or results / "board", title)))

"""firstline leaderboard: records to static pages, and the pages to a browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstline.benchmark.cli.finish import build_boards, sound_records
from firstline.benchmark.cli.options import RESULTS, Results
from firstline.benchmark.cli.show_text import say
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.run.store import Store

if TYPE_CHECKING:
    from firstline.leaderboard.table import Table

app = typer.Typer(help="Build the leaderboard from records, and serve it.")


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    results: Annotated[Path | None, typer.Option(hidden=True, help="Of old.")] = None,
    out: Annotated[Path | None, typer.Option(hidden=True, help="Of old.")] = None,
    title: Annotated[str, typer.Option(hidden=True, help="Of old.")] = "",
) -> None:
    """Build the leaderboard from records, and serve it."""
    if context.invoked_subcommand is None:
        raise FirstlineError(
            "say what to do: `firstline leaderboard build` writes the pages (its options are those that "
            "`firstline leaderboard` had), `serve` shows them, `diff` compares"
        )


@app.command()
def build(
    results: Results = RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; by default `board` in the results folder.")
    ] = None,
    title: Annotated[str, typer.Option(help="The site's name.")] = "firstline",
) -> None:
    """Build the leaderboard: a folder of pages that open from disk and ask no other machine for anything.

    A folder of results folders gives one site of all of them, in which records of two never share a board.
    """
    found = [(store, sound_records(store)) for store in _stores(results)]
    say(str(build_boards(found, out or results / "board", title)))


def _stores(folder: Path) -> list[Store]:
    """The results folders that a folder is or holds: itself, and those below it where it has no records of its own."""
    own = Store(folder)
    if (folder / "records").is_dir() or not folder.is_dir():
        return [own]
    below = [
        path
        for path in sorted(folder.iterdir())
        if any((path / kind).is_dir() for kind in ("records", "streams"))
    ]
    below = [
        path for path in below if not (path / "index.html").is_file()
    ]  # a built leaderboard has records too
    return [own, *map(Store, below)] if below else [own]


@app.command()
def serve(
    results: Results = RESULTS,
    folder: Annotated[
        Path | None, typer.Option(help="A built leaderboard; by default `board` in the results folder.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Serve a built leaderboard to this machine's browser, until it is interrupted."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    place = folder or results / "board"
    if not (place / "index.html").is_file():
        raise FirstlineError(
            f"there is no leaderboard in {place}; write one with `firstline leaderboard build`"
        )
    try:
        server = ThreadingHTTPServer(
            ("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(place))
        )
    except OSError as error:
        raise FirstlineError(
            f"cannot serve on port {port}: {error.strerror}; choose another with --port"
        ) from None
    with server:
        say(f"http://127.0.0.1:{server.server_port}/  (stop it with Ctrl-C)")
        server.serve_forever()


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A results folder, or a folder of such.")],
    new: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """Print how ranks and scores moved from one results folder to another, as Markdown for a pull request.

    A change is told from chance by McNemar's exact test on the examples that both met, with Holm's correction.
    """
    from firstline.benchmark.core import catalog
    from firstline.leaderboard.changes import changes, markdown
    from firstline.leaderboard.names import controls
    from firstline.leaderboard.table import tables

    known = controls(catalog.load().cards)

    def named(folder: Path) -> "list[tuple[str, Table]]":
        if not folder.is_dir():
            raise FirstlineError(f"there is no folder {folder}")
        # One folder is compared with another whatever they are called; of several, those of the same name.
        stores = _stores(folder)
        names = [store.root.name if len(stores) > 1 else "" for store in stores]
        return [
            (name, table)
            for name, store in zip(names, stores, strict=True)
            for table in tables(sound_records(store), store.outcomes, resampled=False, controls=known)
        ]

    say(markdown(changes(named(old), named(new))))

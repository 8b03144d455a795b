"""firstline check: the contract that every task, defense and attack keeps."""

import importlib.util
import sys
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstline.benchmark.cli.options import DataDir, Json
from firstline.benchmark.cli.show_text import count, say, say_json
from firstline.benchmark.core import catalog
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.packages import absent

SKIPPED = (
    "tests",
    "build",
    "dist",
    "docs",
    "__pycache__",
)  # folders of a plugin that hold none of its modules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firstline.benchmark.core.contracts import Item


def check(
    what: Annotated[
        str, typer.Argument(help="A name or glob of registered items, or a plugin's .py file or folder.")
    ] = "*",
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run the contract checks on registered items, or on a plugin before it is installed.

    Tasks whose data is not here, and items whose package is not installed, are skipped, with the reason.
    Exits with 1 if a check fails.
    """
    from firstline.benchmark.contract.checks import Finding, findings

    def all_findings() -> "Iterator[Finding]":
        for name, reason in catalog.discover(catalog.plugin_entries()).items():
            yield Finding(f"plugin {name}", "Can be imported", problem=reason)
        for kind, cls in _wanted(what):
            where = f"{kind} {cls.name}", "Can be made with its default settings"
            try:
                if missing := absent(cls.name, cls.facts()):
                    yield Finding(*where, skipped=missing)
                    continue
                item = cls()
            except Exception as error:
                yield Finding(*where, problem=f"{type(error).__name__}: {error}")
                continue
            yield from findings(item, kind, data_dir)

    found: list[Finding] = []
    for finding in all_findings():
        found.append(finding)
        if not json and (finding.problem or finding.skipped):
            mark = "FAILED" if finding.problem else "skipped"
            say(f"{mark}  {finding.item}: {finding.check}: {finding.problem or finding.skipped}")
    failed = [f for f in found if f.problem]
    skipped = [f for f in found if f.skipped]
    if json:
        say_json([asdict(f) for f in found])
    else:
        items = len({f.item for f in found})
        say(
            f"{count(items, 'item')}: {len(found) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped"
        )
    if failed:
        raise typer.Exit(1)


def _wanted(what: str) -> "list[tuple[str, type[Item]]]":
    from firstline.benchmark.core.registry import registered

    path = Path(what)
    if path.suffix == ".py" or path.is_dir():
        before = set(registered())
        for file in _files(path):
            _import(file)
        fresh = [(kind, cls) for (kind, name), cls in registered().items() if (kind, name) not in before]
        files = {str(file.resolve()) for file in _files(path)}
        known = [
            (k, c)
            for (k, _), c in registered().items()
            if getattr(sys.modules[c.__module__], "__file__", "") in files
        ]
        if not fresh and not known:
            raise FirstlineError(f'{what} registers nothing; put @defense("name") on a Defense class')
        return fresh or known
    chosen = [(kind, cls) for (kind, name), cls in sorted(registered().items()) if fnmatchcase(name, what)]
    if not chosen:
        raise not_found("task, defense or attack", what, {name for _, name in registered()})
    return chosen


def _files(path: Path) -> list[Path]:
    """The modules of a plugin: not its tests, unless there is nothing else, nor what only looks like a module."""
    if path.suffix == ".py":
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*.py"))
        if file.name not in ("setup.py", "conftest.py")
        and not any(part in SKIPPED or part.startswith(".") for part in file.relative_to(path).parts)
    ]
    return [file for file in files if not file.stem.startswith("test_")] or files


def _import(file: Path) -> None:
    if not file.is_file():
        raise FirstlineError(f"there is no file {file}")
    if any(getattr(m, "__file__", None) == str(file.resolve()) for m in list(sys.modules.values())):
        return
    spec = importlib.util.spec_from_file_location(file.stem, file.resolve())
    if spec is None or spec.loader is None:
        raise FirstlineError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except FirstlineError:
        raise
    except (Exception, SystemExit) as error:
        raise FirstlineError(f"{file} can't be imported: {type(error).__name__}: {error}") from None

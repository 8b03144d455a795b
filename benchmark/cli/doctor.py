"""firstline doctor: is this machine fit, and what to do where it is not."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import typer

from firstline.benchmark.cli.options import RESULTS, DataDir, Json, Results
from firstline.benchmark.cli.show_text import say, say_json, table
from firstline.benchmark.core import catalog
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.places import cache_folder
from firstline.benchmark.run.keys import resolve_device
from firstline.benchmark.run.store import Store

Finding = tuple[str, str, str]  # ok, note or problem; what; and what to do


def doctor(results: Results = RESULTS, data_dir: DataDir = None, json: Json = False) -> None:
    """Check interpreter, packages, device, folders, plugins and isolation. Exits with 1 at a problem."""
    findings = [*_machine(), *_packages(), _device(), *_folders(results, data_dir), *_plugins(), _isolation()]
    if json:
        say_json([{"level": level, "what": what, "advice": advice} for level, what, advice in findings])
    else:
        say(table(["", "WHAT", ""], [[level, what, advice] for level, what, advice in findings]))
    if any(level == "problem" for level, _, _ in findings):
        raise typer.Exit(1)


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    python = platform.python_version()
    return [
        ("ok" if sys.version_info >= (3, 11) else "problem", f"Python {python}", "3.11 or newer is needed"),
        ("ok", f"{cores} cores", "--jobs uses as many by default"),
    ]


def _packages() -> list[Finding]:
    found: list[Finding] = []
    for name, advice in (
        ("torch", ""),
        ("torchvision", ""),
        ("mlflow", ""),
        ("datasets", "pip install 'firstline[hf]'"),
        ("opacus", "pip install 'firstline[privacy]'"),
        ("dp-accounting", "pip install 'firstline[privacy]'"),
    ):
        try:
            found.append(("ok", f"{name} {version(name)}", ""))
        except PackageNotFoundError:
            level = "note" if advice else "problem"
            found.append((level, f"{name} is not installed", advice or "install firstline again"))
    return found


def _device() -> Finding:
    if resolve_device("auto") == "cpu":
        return ("ok", "device: cpu", "no GPU was found; everything runs without one")
    import torch

    if torch.cuda.is_available():
        return ("ok", f"device: {torch.cuda.get_device_name()}", "")
    return (
        "problem",
        "a GPU is there, but torch can't use it",
        "install a CUDA build of torch, or pass --device cpu",
    )


def _folders(results: "os.PathLike[str]", data_dir: "os.PathLike[str] | None") -> list[Finding]:
    from pathlib import Path

    found: list[Finding] = []
    try:
        Store(Path(results)).prepare()
        free = shutil.disk_usage(results).free / 1e9
        found.append(("ok" if free > 1 else "problem", f"results in {results}, {free:.0f} GB free", ""))
    except FirstlineError as error:
        found.append(("problem", f"results in {results}", str(error)))
    if data_dir is None:
        found.append(
            (
                "note",
                "no data folder",
                "real data sets are downloaded when used; --data-dir or FIRSTLINE_DATA names a folder",
            )
        )
    else:
        there = Path(data_dir).is_dir()
        found.append(
            ("ok" if there else "problem", f"data in {data_dir}", "" if there else "there is no such folder")
        )
    found.append(("ok", f"cache in {cache_folder()}", "catalogue, imported weights, downloads"))
    return found


def _plugins() -> list[Finding]:
    loaded = catalog.load()
    entries = catalog.plugin_entries()
    found: list[Finding] = [
        ("problem", f"plugin {name} failed to load", reason) for name, reason in loaded.broken.items()
    ]
    if len(entries) > len(found):
        found.append(("ok", f"plugins: {', '.join(e.name for e in entries)}", ""))
    return found or [("ok", "no plugins", "`firstline new defense NAME` writes one")]


def _isolation() -> Finding:
    if shutil.which("bwrap"):
        return (
            "note",
            "bubblewrap is there",
            "not used yet: plugins run in worker processes, scored in processes of their own",
        )
    return (
        "note",
        "plugins run in worker processes",
        "run plugins that you don't trust on a machine that you can lose",
    )

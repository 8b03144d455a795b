"""What tests of runs and of the command line share: a command to call, suites and plugins to write, one run to look at."""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import dedent
from unittest import mock

import pytest
import torch

from firstline.benchmark.cli.main import main
from firstline.benchmark.core import catalog, registry
from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.record import Environment, ItemUse, Provenance, Record
from firstline.benchmark.core.stream_record import Shape, StreamRecord, Window
from firstline.benchmark.run.store import Store

torch.set_num_threads(1)  # as in a worker; several test processes with two threads each wait for one another

collect_ignore = ["kernels.py", "peers.py"]  # scripts of `make perf`, which need the extra `peers`

Shared = Callable[[str, Callable[[Path], None]], Path]


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


class Command:
    """The `firstline` command."""

    def __call__(self, *args: object) -> Ran:
        """Run it in this process: quick, and its worker processes are forked from one server."""
        out, err = StringIO(), StringIO()
        argv = ["firstline", *map(str, args)]
        with (
            mock.patch.object(sys, "argv", argv),
            mock.patch.dict(os.environ, COLUMNS="100"),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
        return Ran(code, out.getvalue(), err.getvalue())

    def start(self, *args: object, path: Path | None = None, **more: str) -> "subprocess.Popen[str]":
        """Start it as a process in a group of its own. path is a folder to import plugins from."""
        code = "from firstline.benchmark.cli.main import main; main()"
        environment = {**os.environ, "COLUMNS": "100", **more}
        if path is not None:
            environment["PYTHONPATH"] = os.pathsep.join(
                filter(None, [str(path), os.environ.get("PYTHONPATH")])
            )
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def apart(self, *args: object, path: Path | None = None, **more: str) -> Ran:
        """Run it as a process of its own."""
        process = self.start(*args, path=path, **more)
        out, err = process.communicate(timeout=300)
        return Ran(process.returncode, out, err)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Return a function that fills a folder once for all test processes, and returns its path."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name: str, fill: Callable[[Path], None]) -> Path:
        folder = base / f"shared-{name}"
        with open(base / f"shared-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                unfinished = folder.with_suffix(".unfinished")
                unfinished.mkdir(exist_ok=True)
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return once


@pytest.fixture(scope="session", autouse=True)
def own_cache(shared: Shared) -> Iterator[Path]:
    """Keep the user's own catalogue, weights and results out of the tests."""
    folder = shared("cache", lambda folder: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.delenv("FIRSTLINE_RESULTS", raising=False)
        yield folder


@pytest.fixture(scope="session")
def cli() -> Command:
    return Command()


@pytest.fixture(scope="session")
def catalogue(own_cache: Path) -> catalog.Catalog:
    """Return the catalogue of our own items, and leave it in the cache."""
    return catalog.load()


@pytest.fixture(scope="session")
def smoke(shared: Shared, cli: Command) -> Path:
    """Return the results folder of the suite `smoke`, run by one worker. Copy it before you change it."""

    def fill(folder: Path) -> None:
        ran = cli("run", "smoke", "--jobs", 1, "--no-mlflow", "--results", folder)
        assert ran.code == 0, ran

    return shared("smoke", fill)


@pytest.fixture(scope="session")
def timeless() -> Callable[[Path], dict[str, object]]:
    """Return a function from a results folder to what must not depend on how its records were made."""

    def read(record: Record) -> object:
        data = record.timeless()
        for changing in ("commit", "dirty"):  # the checkout may change while the tests run
            del data["provenance"][changing]
        return data

    return lambda folder: {record.key: read(record) for record in Store(folder).records()}


@pytest.fixture
def suite_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a suite of one task with these blocks of (defenses, attacks, threats)."""

    def write(
        *blocks: tuple[list[str], list[str], list[str]], seeds: tuple[int, ...] = (0,), examples: int = 16
    ) -> Path:
        lines = ['name = "mine"', 'version = "1"', f"seeds = {list(seeds)}", f"examples = {examples}"]
        for defenses, attacks, threats in blocks:
            lines += ["[[matrix]]", 'tasks = ["breast-cancer"]']
            lines += [f"defenses = {defenses}", f"attacks = {attacks}", f"threats = {threats}"]
        path = tmp_path / "mine.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def make_stream(
    defense: str = "none", seed: int = 0, right: tuple[int, ...] = (10, 10, 5, 5, 10, 10), **more: object
) -> StreamRecord:
    """Return the record of a stream of windows of ten, with a wave in the third and the fourth; more are its fields."""
    item = {
        name: ItemUse(text=name, name=name, version=1, settings={}, code="c0de") for name in ("digits", "pgd")
    }
    layers = [
        ItemUse(text=text, name=text, version=1, settings={}, code="c0de") for text in defense.split("+")
    ]
    preimage = {"defense": defense, "seed": seed, "more": repr(more)}
    when = "2026-01-02T03:04:05Z"
    fields: dict[str, object] = {
        "key": hashlib.sha256(canonical(preimage).encode()).hexdigest(),
        "preimage": preimage,
        "task": item["digits"],
        "defense": layers,
        "attack": item["pgd"],
        "threat": "evasion/white/linf:0.1",
        "seed": seed,
        "shape": Shape(size=10, before=2, during=2),
        "windows": [
            Window(attacked=number in (2, 3), inputs=10, right=count, usual=10, alarm=False)
            for number, count in enumerate(right)
        ],
        "environment": Environment(python="3", platform="p", cpu="c", device="cpu", threads=1, packages={}),
        "provenance": Provenance(firstline="0.1", commit="", dirty=False, started=when, ended=when),
    }
    return StreamRecord.model_validate(fields | more)


@pytest.fixture(scope="session")
def new_stream() -> Callable[..., StreamRecord]:
    return make_stream


def write_plugin(folder: Path, module: str, source: str | None = None) -> Path:
    """Make module importable from folder, and known as a plugin: what `pip install` would leave there."""
    folder.mkdir(exist_ok=True)
    if source is not None:
        (folder / f"{module}.py").write_text(dedent(source))
    facts = folder / f"{module}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1\n")
    (facts / "entry_points.txt").write_text(f"[firstline.plugins]\n{module} = {module}\n")
    return folder


@pytest.fixture(scope="session")
def plugin() -> Callable[..., Path]:
    return write_plugin


@pytest.fixture
def registering(tmp_path: Path) -> Iterator[None]:
    """Take back what a test registers, and what it imports from its own folder."""
    catalog.discover([])  # ours register when they are imported, and that is once
    with mock.patch.dict(registry._registered):
        yield
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]

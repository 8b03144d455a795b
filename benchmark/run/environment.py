"""Where and with what code a number is measured."""

import ctypes
import functools
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import firstline
from firstline.benchmark.core.record import Environment

PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "scipy",
    "scikit-learn",
    "safetensors",
    "opacus",
    "dp-accounting",
    "firstline",
)


@functools.cache
def commit() -> tuple[str, bool]:
    """Return the commit of the source tree that runs, and whether it has local changes; empty outside a checkout."""
    root = Path(firstline.__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return "", False

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", root, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "", False


@functools.cache
def environment(device: str, threads: int) -> Environment:
    """Return the interpreter, machine and packages."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_cpu(),
        device=device if device == "cpu" else _gpu(),
        threads=threads,
        packages=packages,
    )


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the length of a block; they are put back as they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if os.uname().sysname == "Linux" else 1024**2
    )


def return_free_memory() -> None:
    """Give the system back what glibc's allocator holds free: pieces too small for the next tensors pile up with it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu() -> str:
    import torch

    return f"cuda: {torch.cuda.get_device_name()}"

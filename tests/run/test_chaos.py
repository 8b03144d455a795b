"""Runs that are killed or interrupted at any moment, and started again by the same command."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from firstline.benchmark.run.store import Store

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")

EVASION = (["none", "input-noise(sigma=0.05)"], ["uniform-noise(draws=1)", "pgd(steps=3)"], ["evasion/white/linf:0.05"])  # fmt: skip
POISONING = (["none", "input-noise(sigma=0.05)"], ["random-label-flip"], ["poisoning/gray/availability:10%,train=100%"])  # fmt: skip


def stamps(folder):
    """Return what changes when a record is written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (folder / "records").rglob("*.json")}


def outcomes(folder):
    return {path.name: path.read_bytes() for path in (folder / "outcomes").rglob("*.safetensors")}


def files(folder):
    return sum(path.is_file() for path in folder.rglob("*"))


def wait_for(condition, process, seconds=60.0):
    """Wait until condition holds or process has ended."""
    end = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.005)


def finish(process):
    """Wait for a process; return its exit code and all that it printed."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


@pytest.fixture
def begin(cli, tmp_path):
    """Return a function that starts a run into a folder. What is still running is killed after the test."""
    started = []

    def start(suite, folder, *more):
        words = ["run", suite, "--no-mlflow", "--no-board", "--results", folder, *more]
        started.append(cli.start(*words, PYTHONUNBUFFERED="1"))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_resume_to_the_records_of_an_undisturbed_one(
    cli, begin, suite_file, timeless, tmp_path, kills
):
    suite, chance = suite_file(EVASION, POISONING), random.Random(kills)
    assert cli("run", suite, "--jobs", 1, "--no-mlflow", "--results", tmp_path / "calm").code == 0
    calm, calm_outcomes = timeless(tmp_path / "calm"), outcomes(tmp_path / "calm")
    assert len(calm) == 6

    def check(folder):
        assert timeless(folder) == calm
        assert outcomes(folder) == calm_outcomes
        lines = (folder / "log.jsonl").read_text().splitlines()
        assert len(lines) == 6, "a cell was measured twice"

    round_, killed = 0, 0
    while True:
        folder = tmp_path / f"round {round_}"
        before, there = stamps(folder), files(folder)
        process = begin(suite, folder, "--jobs", 2)
        if killed < kills:
            # Somewhere in the start, or some files later: within a fit, a write, a cell.
            goal, moment = chance.choice([None, 1, 2, 4, 6]), chance.random()
            wait_for(lambda goal=goal, there=there: goal is not None and files(folder) >= there + goal, process, 60.0) if goal else time.sleep(3 * moment)  # fmt: skip
            time.sleep(0.2 * moment)
        if killed < kills and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            finish(process)
            killed += 1
        else:
            code, printed = finish(process)
            assert code == 0, printed
            check(folder)
            round_ += 1
        store = Store(folder)
        assert all(store.read(key).status == "ok" for key in store.record_keys())
        assert before.items() <= stamps(folder).items(), "a finished record was written again"
        if killed == kills and round_ and process.returncode == 0:
            return

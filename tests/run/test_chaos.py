"""Runs that are killed or interrupted at any moment, and started again by the same command."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from firstline.benchmark.run.store import Store

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc"
)

EVASION = (["none", "input-noise(sigma=0.05)"], ["uniform-noise(draws=1)", "pgd(steps=3)"], ["evasion/white/linf:0.05"])  # fmt: skip
POISONING = (["none", "input-noise(sigma=0.05)"], ["random-label-flip"], ["poisoning/gray/availability:10%,train=100%"])  # fmt: skip


def stamps(folder):
    """Return what changes when a record is written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (folder / "records").rglob("*.json")}


def outcomes(folder):
    return {path.name: path.read_bytes() for path in (folder / "outcomes").rglob("*.safetensors")}


def files(folder):
    return sum(path.is_file() for path in folder.rglob("*"))


def wait_for(condition, process, seconds=120.0):
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
    suite, chance = suite_file(EVASION, POISONING), random.Random(kills + 1)
    assert cli("run", suite, "--jobs", 1, "--no-mlflow", "--results", tmp_path / "calm").code == 0
    calm, calm_outcomes = timeless(tmp_path / "calm"), outcomes(tmp_path / "calm")
    assert len(calm) == 6
    finished, killed = 0, 0
    while not finished or killed < kills:
        folder = tmp_path / f"round {finished}"
        before, there = stamps(folder), files(folder)
        process = begin(suite, folder, "--jobs", 2)
        if killed < kills:
            # A moment of the start, or shortly after some more files: within a fit, a write, a cell.
            more, moment = chance.choice([0, 1, 2, 4, 6]), chance.random()
            time.sleep(0 if more else 3 * moment)
            wait_for(lambda: files(folder) >= there + more, process)  # noqa: B023 - called at once
            time.sleep(0.2 * moment)
        if killed < kills and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            finish(process)
            killed += 1
        else:
            code, printed = finish(process)
            assert code == 0, printed
            assert timeless(folder) == calm
            assert outcomes(folder) == calm_outcomes
            assert len((folder / "log.jsonl").read_text().splitlines()) == 6, "a cell was measured twice"
            finished += 1
        store = Store(folder)
        assert all(store.read(key).status == "ok" for key in store.record_keys()), "half a record is left"
        assert before.items() <= stamps(folder).items(), "a finished record was written again"


def test_an_interrupted_run_finishes_its_cell_and_the_same_command_resumes(begin, suite_file, tmp_path):
    slow = (["none"], ["uniform-noise(draws=1)", "pgd(steps=4000)", "fgsm", "uniform-noise(draws=2)"], ["evasion/white/linf:0.05"])  # fmt: skip
    suite, folder = suite_file(slow), tmp_path / "results"
    process = begin(suite, folder, "--jobs", 1)
    wait_for(lambda: len(stamps(folder)) == 1, process)
    time.sleep(0.3)  # the slow cell is under way
    os.killpg(process.pid, signal.SIGINT)
    code, printed = finish(process)
    assert code == 130
    assert printed.count("stopping: the cells under way are finished first") == 1
    assert "Traceback" not in printed
    assert "2 records of 4 cells" in printed
    before = stamps(folder)
    assert len(before) == len((folder / "log.jsonl").read_text().splitlines()) == 2
    code, printed = finish(begin(suite, folder, "--jobs", 1))
    assert code == 0
    assert "2 cells and 0 fits to run, 2 reused" in printed
    assert len(stamps(folder)) == 4
    assert before.items() <= stamps(folder).items()


def server_runs(process):
    """Whether the server that workers are forked from was started; torch is loaded seconds later."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"forkserver" in path.with_name("cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


def test_an_interrupt_while_workers_start_is_no_accident(begin, suite_file, tmp_path):
    process = begin(suite_file(EVASION), tmp_path / "results", "--jobs", 2)
    wait_for(lambda: server_runs(process), process)
    os.killpg(process.pid, signal.SIGINT)
    code, printed = finish(process)
    assert code == 130
    assert "stopping: the cells under way are finished first" in printed
    assert "0 records of 4 cells" in printed
    assert "Traceback" not in printed
    assert "Aborted" not in printed


def test_a_second_interrupt_stops_at_once(begin, suite_file, tmp_path):
    endless = (["none"], ["uniform-noise(draws=1)", "pgd(steps=10000000)"], ["evasion/white/linf:0.05"])
    suite, folder = suite_file(endless), tmp_path / "results"
    process = begin(suite, folder, "--jobs", 1)
    wait_for(lambda: len(stamps(folder)) == 1, process)
    time.sleep(0.3)  # the endless cell is under way
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    code, printed = finish(process)
    assert code == 130
    assert "stopped; nothing that was finished is lost, the same command goes on" in printed
    assert "Traceback" not in printed
    assert len(stamps(folder)) == len((folder / "log.jsonl").read_text().splitlines()) == 1

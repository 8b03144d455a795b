"""Commands that only look answer at once, and load no torch."""

import os
import subprocess
import sys
import time

import pytest

# Runs a command and says whether heavy modules were loaded on the way.
PROBE = """
import sys
from firstline.benchmark.cli.main import main
try:
    main()
except SystemExit as stop:
    code = stop.code or 0
else:
    code = 0
heavy = {"torch", "mlflow", "sklearn", "numba", "datasets"} & set(sys.modules)
sys.exit(f"loaded {sorted(heavy)}" if heavy else code)
"""

LIGHT = {
    "list": ["list"],
    "list json": ["list", "attacks", "--json"],
    "show an attack": ["show", "pgd"],
    "show a suite": ["show", "quick"],
    "show a recipe": ["show", "wong2018"],
    "plan": ["plan", "quick"],
    "status": ["status"],
    "help": ["--help"],
    "version": ["--version"],
    "an unknown name": ["show", "pdg"],
}


@pytest.mark.parametrize("words", LIGHT.values(), ids=LIGHT)
def test_looking_loads_no_torch(catalogue, tmp_path, words):
    ran = subprocess.run([sys.executable, "-c", PROBE, *words], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == (2 if words[-1] == "pdg" else 0), ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", ["status", "show", "run"])
def test_looking_at_results_loads_no_torch(catalogue, smoke, tmp_path, command):
    key = next(path.stem for path in smoke.rglob("records/*/*.json"))
    words = {
        "status": ["status", "--results", smoke, "--keys"],
        "show": ["show", key[:8], "--results", smoke],
        "run": ["run", "smoke", "--results", smoke, "--no-mlflow", "--no-board"],
    }[command]
    ran = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("words", [["list"], ["show", "pgd"], ["plan", "quick"]], ids=" ".join)
def test_looking_takes_less_than_half_a_second(catalogue, tmp_path, words):
    """Processor time, as the wall's is that of whatever else runs; of many tries, one is undisturbed."""
    tries = []
    while not tries or (min(tries) >= 0.5 and len(tries) < 20):
        before = os.times()
        code = "from firstline.benchmark.cli.main import main; main()"
        subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, check=True)
        after = os.times()
        tries.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(tries) < 0.5


def test_a_run_with_nothing_to_do_is_quick(cli, smoke):
    tries = []
    while not tries or (min(tries) >= 2 and len(tries) < 5):
        start = time.perf_counter()
        ran = cli.apart("run", "smoke", "--results", smoke, "--no-mlflow", "--no-board")
        tries.append(time.perf_counter() - start)
        assert ran.code == 0
        assert "nothing to do" in ran.out
    assert min(tries) < 2

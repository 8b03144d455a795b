import os
import subprocess
import sys
from importlib.metadata import version

import pytest

import firstline
from firstline.benchmark.run import environment as module
from firstline.benchmark.run.environment import commit, environment, now, peak_memory_mb
from firstline.benchmark.run.pool import ALLOCATOR


@pytest.fixture(autouse=True)
def forgotten():
    commit.cache_clear()
    yield
    commit.cache_clear()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit, from which firstline seems to be imported."""
    package = tmp_path / "src" / "firstline"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "Begin"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(firstline, "__file__", str(package / "__init__.py"))
    return package


def test_the_commit_of_the_checkout_is_known(checkout):
    head = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert commit() == (head.stdout.strip(), False)


def test_local_changes_are_told_and_new_files_are_not(checkout):
    (checkout / "new.py").write_text("")
    assert commit()[1] is False
    commit.cache_clear()
    (checkout / "__init__.py").write_text("x = 1\n")
    assert commit()[1] is True


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(firstline, "__file__", str(tmp_path / "a" / "b" / "__init__.py"))
    assert commit() == ("", False)


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == ("", False)


def test_the_environment_names_what_numbers_depend_on(monkeypatch):
    found = environment("cpu", 3)
    assert (found.device, found.threads) == ("cpu", 3)
    assert found.packages["torch"] == version("torch")
    assert {"numpy", "scipy", "scikit-learn", "firstline"} <= found.packages.keys()
    assert found.cpu
    assert found.python.startswith("3.")


def test_a_package_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "no-such-package"))
    assert list(environment.__wrapped__("cpu", 1).packages) == ["numpy"]


def test_time_and_memory_have_their_units():
    assert now().endswith("Z")
    assert len(now()) == len("2026-01-01T00:00:00Z")
    assert 10 < peak_memory_mb() < 1e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_free_memory_between_what_is_in_use_goes_back():
    """A process with a worker's settings frees every other of 64 pieces of 4 MiB."""
    script = """
from firstline.benchmark.run.environment import return_free_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
pieces = [bytearray(4 << 20) for _ in range(64)]
for piece in pieces:
    piece[:] = bytes([1]) * len(piece)
full = resident()
del pieces[::2]
held = resident()
return_free_memory()
print(full - held, full - resident())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | ALLOCATOR, capture_output=True, text=True, check=True
    )
    kept_back, given_back = map(int, done.stdout.split())
    assert kept_back < 10
    assert given_back > 100

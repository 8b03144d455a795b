import json
import shutil

import pytest

from firstline.benchmark.run.store import Store


@pytest.fixture
def copy(smoke, tmp_path):
    return shutil.copytree(smoke, tmp_path / "copy")


def test_status_counts_records_by_suite_and_task(cli, smoke):
    ran = cli("status", "--results", smoke)
    rows = [line.split() for line in ran.out.splitlines() if line.startswith("smoke@1.0.0")]
    assert {row[-1]: row[2:4] for row in rows} == {
        "evasion": ["4", "0"],
        "membership": ["2", "0"],
        "poisoning": ["2", "0"],
    }
    assert "8 records, 0 failed, 0 damaged" in ran.out


def test_keys_are_listed_and_found_again(cli, smoke):
    ran = cli("status", "--results", smoke, "--keys")
    keys = [
        line.split()[0] for line in ran.out.splitlines() if len(line.split()[:1] and line.split()[0]) == 12
    ]
    assert len(keys) == 8
    shown = cli("show", keys[0], "--results", smoke)
    assert shown.code == 0
    assert Store(smoke).find(keys[0]) in shown.out


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b'{"key":'])
def test_damaged_records_are_named_and_the_rest_is_counted(cli, copy, damage):
    store = Store(copy)
    first = store.record_keys()[0]
    store.record_path(first).write_bytes(damage)
    ran = cli("status", "--results", copy)
    assert ran.code == 0
    assert sum(line.startswith("damaged: ") and first in line for line in ran.out.splitlines()) == 1
    assert "7 records, 0 failed, 1 damaged" in ran.out
    found = json.loads(cli("status", "--results", copy, "--json").out)
    assert len(found["records"]) == 7
    assert len(found["damaged"]) == 1


def test_a_damaged_record_leaves_the_others_to_compare_rank_and_publish(cli, copy):
    store = Store(copy)
    first = store.record_keys()[0]
    store.record_path(first).write_bytes(b"{")
    for words in (["compare", "none", "input-noise(sigma=0.05)"], ["leaderboard", "build"]):
        ran = cli(*words, "--results", copy)
        assert ran.code == 0
        assert ran.err.startswith("left out: ")
        assert ran.err.count("\n") == 1


def test_changed_arrays_are_told_and_not_compared(cli, copy):
    for path in (copy / "outcomes").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    ran = cli("compare", "none", "input-noise(sigma=0.05)", "--results", copy)
    assert ran.code == 2
    assert "was changed since it was written" in ran.err
    assert ran.err.count("\n") == 1


def test_a_run_over_changed_arrays_does_not_crash(cli, copy):
    for path in (copy / "outcomes").rglob("*.safetensors"):
        path.unlink()
    ran = cli("run", "smoke", "--results", copy, "--no-mlflow")
    assert "Traceback" not in ran.err
    assert ran.code in (0, 2)


def test_an_empty_folder_says_how_to_begin(cli, tmp_path):
    ran = cli("status", "--results", tmp_path)
    assert (ran.code, ran.out) == (0, f"{tmp_path} holds no records; `firstline run quick` makes some\n")

"""The same cells, however they are run: by one worker or two, at once or in pieces, again or for the first time."""

import hashlib
import json
import shutil

import pytest

from firstline.benchmark.run.keys import key
from firstline.benchmark.run.pool import LocalPool
from firstline.benchmark.run.store import Store


def outcomes(folder):
    return {path.name: path.read_bytes() for path in (folder / "outcomes").rglob("*.safetensors")}


def stamps(folder):
    """Return what changes when a file is written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (folder / "records").rglob("*.json")}


@pytest.fixture
def copy(smoke, tmp_path):
    return shutil.copytree(smoke, tmp_path / "copy")


@pytest.fixture(scope="module")
def by_two(shared, cli):
    """The same suite by two workers."""

    def fill(folder):
        ran = cli("run", "smoke", "--jobs", 2, "--no-mlflow", "--results", folder)
        assert ran.code == 0, ran

    return shared("smoke-by-two", fill)


def test_two_workers_find_what_one_does(smoke, by_two, timeless):
    found = timeless(smoke)
    assert len(found) == 8
    assert timeless(by_two) == found


def test_two_workers_leave_the_same_bytes_per_example(smoke, by_two):
    found = outcomes(smoke)
    assert len(found) == 8
    assert outcomes(by_two) == found


def test_two_workers_fit_the_same_systems(smoke, by_two):
    fits = [
        {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "fits").rglob("*.safetensors")}
        for folder in (smoke, by_two)
    ]
    assert len(fits[0]) == 6
    assert fits[0] == fits[1]


def test_a_records_key_is_that_of_its_preimage(smoke):
    for record in Store(smoke).records():
        assert key(record.preimage) == record.key
        assert key(record.preimage["score"]["craft"]) == record.stages["craft"]


def test_every_record_is_in_the_log(smoke):
    lines = [json.loads(line) for line in (smoke / "log.jsonl").read_text().splitlines()]
    digests = {
        record.key: hashlib.sha256(Store(smoke).record_path(record.key).read_bytes()).hexdigest()
        for record in Store(smoke).records()
    }
    assert {line["key"]: line["sha256"] for line in lines} == digests


def test_a_second_run_reuses_all_and_starts_no_worker(cli, copy, monkeypatch):
    before, chain = stamps(copy), (copy / "log.jsonl").read_bytes()
    monkeypatch.setattr(LocalPool, "_start", lambda *_: pytest.fail("a worker was started"))
    ran = cli("run", "smoke", "--jobs", 2, "--no-mlflow", "--results", copy)
    assert ran.code == 0
    assert "0 cells and 0 fits to run, 8 reused, 0 skipped; nothing to do." in ran.out
    assert "8 records of 8 cells" in ran.out
    assert stamps(copy) == before
    assert (copy / "log.jsonl").read_bytes() == chain


def test_a_run_with_nothing_to_do_logs_what_a_killed_one_could_not(cli, smoke, copy):
    (copy / "log.jsonl").unlink()
    assert cli("run", "smoke", "--no-mlflow", "--no-board", "--results", copy).code == 0
    assert (copy / "log.jsonl").read_bytes() == (smoke / "log.jsonl").read_bytes()


def test_damage_is_repaired_to_the_same_numbers(cli, smoke, copy, timeless):
    """A record cut short, one gone, and every fitted system changed: two cells run, the other six stay."""
    first, second, *others = Store(copy).record_keys()
    path = Store(copy).record_path(first)
    path.write_bytes(path.read_bytes()[:-100])
    Store(copy).record_path(second).unlink()
    for fit in (copy / "fits").rglob("*.safetensors"):
        fit.write_bytes(fit.read_bytes()[:-1] + bytes([fit.read_bytes()[-1] ^ 1]))
    before = stamps(copy)
    ran = cli("run", "smoke", "--jobs", 1, "--no-mlflow", "--results", copy)
    assert ran.code == 0
    assert "2 cells and" in ran.out
    assert timeless(copy) == timeless(smoke)
    assert outcomes(copy) == outcomes(smoke)
    after = stamps(copy)
    assert all(after[f"{other}.json"] == before[f"{other}.json"] for other in others)

"""A record measured again."""

import json
import shutil

import pytest

from firstline.benchmark.run.store import Store


@pytest.fixture
def copy(smoke, tmp_path):
    return shutil.copytree(smoke, tmp_path / "copy")


def one(folder, attack):
    return next(r for r in Store(folder).records() if r.attack.text == attack)


def test_a_record_is_the_same_when_it_is_measured_again(cli, catalogue, copy):
    record = one(copy, "pgd(steps=10)")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    ran = cli("reproduce", record.key[:8], "--results", copy)
    assert ran.code == 0, ran
    assert "the same, in every number and every example" in ran.out
    value = f"{record.metrics['robust_accuracy'].value:.6g}"
    assert any(line.split() == ["robust_accuracy", value, value] for line in ran.out.splitlines())
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_an_edited_record_is_found_out(cli, catalogue, copy):
    record = one(copy, "uniform-noise")
    metric = record.metrics["queries_per_example"]
    edited = {**record.metrics, "queries_per_example": metric.model_copy(update={"value": metric.value + 1})}
    path = Store(copy).record_path(record.key)
    path.write_text(record.model_copy(update={"metrics": edited}).to_json())
    ran = cli("reproduce", record.key, "--results", copy, "--json")
    found = json.loads(ran.out)
    assert ran.code == 1
    assert (found["key"], found["same"], found["differ"]) == (record.key, False, ["metrics"])
    assert found["new"]["metrics"]["queries_per_example"]["value"] == metric.value


def test_a_key_that_is_not_there_is_one_line(cli, catalogue, copy):
    ran = cli("reproduce", "deadbeef", "--results", copy)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "begins with 'deadbeef'" in ran.err

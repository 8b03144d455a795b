import pytest

from firstline.benchmark.run import estimate as module
from firstline.benchmark.run.estimate import UNKNOWN, add_timings, estimate, read_timings

FLIPS = "poisoning/gray/availability:10%,train=100%"
TIMED = {"fit blobs none": [30.0, 3], "cell blobs none pgd": [8.0, 4], "cell blobs none flip": [2.0, 1]}


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "no such file")


def test_a_group_fits_once_and_attacks_each_time(new_cell):
    group = [new_cell(), new_cell(threat="evasion/white/l2:1")]
    assert estimate([group], TIMED, 1) == (10 + 2 + 2, 0)


def test_poison_is_fitted_again_each_time(new_cell, new_use):
    group = [new_cell(), new_cell(attack=new_use("flip"), threat=FLIPS)]
    assert estimate([group], TIMED, 1) == (10 + 2 + (10 + 2), 0)


def test_what_was_never_timed_is_guessed_and_counted(new_cell, new_use):
    group = [new_cell((new_use("blur"),)), new_cell((new_use("blur"),), seed=1)]
    assert estimate([group], TIMED, 1) == (3 * UNKNOWN, 2)
    assert estimate([], TIMED, 4) == (0, 0)


def test_workers_share_groups_and_not_cells(new_cell):
    groups = [[new_cell(seed=seed)] for seed in range(4)]
    assert [estimate(groups, TIMED, jobs)[0] for jobs in (1, 2, 4, 8)] == [48, 24, 12, 12]
    assert estimate([[new_cell()] * 4], TIMED, 4)[0] == 18


def test_finished_cells_teach_the_estimate(tmp_path, new_cell, new_record):
    add_timings(tmp_path, [new_record(new_cell(seed=seed)) for seed in range(2)])
    add_timings(tmp_path, [new_record(new_cell(seed=2)), new_record(new_cell(seed=3), fails="attack")])
    timings = read_timings(tmp_path)
    assert timings == {"fit blobs none": [9.0, 3.0], "cell blobs none pgd": [6.0, 3.0]}
    assert estimate([[new_cell(seed=9)]], timings, 1) == (5.0, 0)


def test_own_timings_go_before_those_that_come_with_firstline(tmp_path, monkeypatch, new_cell, new_record):
    shipped = tmp_path / "shipped.json"
    shipped.write_text('{"fit blobs none": [100, 1], "cell blobs none fgsm": [1, 1]}')
    monkeypatch.setattr(module, "SHIPPED", shipped)
    add_timings(tmp_path, [new_record(new_cell())])
    timings = read_timings(tmp_path)
    assert timings["fit blobs none"] == [3, 1]
    assert timings["cell blobs none fgsm"] == [1, 1]


@pytest.mark.parametrize("damage", [b"", b"3", b"[[1]]", b"{", b'{"a": 1}', b'{"a": [1]}', b'{"a": ["x", 1]}', b"\xff"])  # fmt: skip
def test_damaged_timings_are_as_none(tmp_path, new_cell, new_record, damage):
    (tmp_path / "timings.json").write_bytes(damage)
    assert read_timings(tmp_path) == {}
    add_timings(tmp_path, [new_record(new_cell())])
    assert read_timings(tmp_path)["fit blobs none"] == [3, 1]


def test_a_repair_is_part_of_the_cell(tmp_path, new_cell, new_record):
    record = new_record(new_cell())
    repaired = record.model_copy(update={"cost": record.cost.model_copy(update={"repair_seconds": 2.0})})
    for folder, made in (("plain", record), ("repaired", repaired)):
        (tmp_path / folder).mkdir()
        add_timings(tmp_path / folder, [made])
    found = [
        estimate([[new_cell()]], read_timings(tmp_path / folder), 1)[0] for folder in ("plain", "repaired")
    ]
    assert found[1] == found[0] + 2

import json

import pytest

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.run import runner
from firstline.benchmark.run.estimate import read_timings
from firstline.benchmark.run.keys import cell_preimage, fit_preimage, key
from firstline.benchmark.run.matrix import Matrix
from firstline.benchmark.run.pool import Done, LocalPool, Started, _death
from firstline.benchmark.run.runner import execute, make_plan, workers
from firstline.benchmark.run.store import Store

FLIPS = "poisoning/gray/availability:10%,train=100%"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def cells(new_cell, new_use):
    """Two systems, two attacks and two seeds, in the order of a matrix."""
    return [
        new_cell((new_use(defense),), new_use(attack), seed=seed)
        for seed in (0, 1)
        for defense in ("none", "blur")
        for attack in ("pgd", "fgsm")
    ]


def test_cells_are_grouped_by_system_in_the_order_of_the_matrix(store, cells):
    plan = make_plan(Matrix(cells), store)
    assert plan.groups == [cells[0:2], cells[2:4], cells[4:6], cells[6:8]]
    assert (plan.to_run, plan.fits, plan.reused, plan.failed) == (8, 4, [], [])


def test_what_has_a_record_is_reused(store, cells, new_record):
    store.write(new_record(cells[1]), None)
    plan = make_plan(Matrix(cells), store)
    assert plan.reused == [cells[1]]
    assert plan.groups[0] == [cells[0]]
    assert plan.to_run == 7


def test_a_system_without_cells_to_run_is_no_group(store, cells, new_record):
    for cell in cells[:2]:
        store.write(new_record(cell), None)
    plan = make_plan(Matrix(cells), store)
    assert plan.groups == [cells[2:4], cells[4:6], cells[6:8]]
    assert plan.fits == 3


@pytest.mark.parametrize("kind", ["attack", "defense", "budget"])
def test_a_failed_cell_is_finished_unless_retried(store, cells, new_record, kind):
    store.write(new_record(cells[0], fails=kind), None)
    plan = make_plan(Matrix(cells), store)
    assert plan.reused == plan.failed == [cells[0]]
    again = make_plan(Matrix(cells), store, retry=True)
    assert (again.to_run, again.reused, again.failed) == (8, [], [])


@pytest.mark.parametrize("kind", ["infra", "task"])
def test_what_the_machine_or_missing_data_failed_runs_again_by_itself(store, cells, new_record, kind):
    store.write(new_record(cells[0], fails=kind), None)
    plan = make_plan(Matrix(cells), store)
    assert (plan.to_run, plan.reused, plan.failed) == (8, [], [])


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_a_cell_with_a_damaged_record_runs_again(store, cells, new_record, damage):
    record = store.write(new_record(cells[0]), None)
    store.record_path(record.key).write_bytes(damage)
    assert make_plan(Matrix(cells), store).to_run == 8


def test_a_seeing_score_is_not_reused_for_a_blind_one(store, cells, new_record):
    store.write(new_record(cells[0]), None)
    assert len(make_plan(Matrix(cells), store, blind=True).reused) == 1
    assert len(make_plan(Matrix(cells), store, blind=False).reused) == 0


def test_stored_fits_are_not_counted_and_poison_needs_its_own(store, new_cell, new_use):
    clean, poisoned = new_cell(), new_cell(attack=new_use("flip"), threat=FLIPS)
    assert make_plan(Matrix([clean]), store).fits == 1
    assert make_plan(Matrix([clean, poisoned]), store).fits == 2
    assert make_plan(Matrix([poisoned]), store).fits == 2, "it is compared with the clean one"
    store.save_fit(key(fit_preimage(clean, poisoned=False)), {}, {})
    assert make_plan(Matrix([clean, poisoned]), store).fits == 1


class Fake:
    """An executor that writes records, and may stop or fail on the way."""

    def __init__(self, store, new_record, ends=None, after=99):
        self.store, self.new_record, self.ends, self.after = store, new_record, ends, after

    def run(self, groups, job, tell):
        for n, cell in enumerate(cell for group in groups for cell in group):
            if n == self.after:
                raise self.ends
            tell(Started(cell))
            tell(Done(cell, self.store.write(self.new_record(cell), None)))

    def stop(self):
        pass


def run(plan, executor, root):
    told = []
    records = execute(plan, executor, root=root, folder=None, blind=True, tell=told.append)
    return records, told


def logged(root):
    return [json.loads(line)["key"] for line in (root / "log.jsonl").read_text().splitlines()]


def test_a_run_returns_tells_logs_and_times_its_records(store, cells, new_record, tmp_path):
    plan = make_plan(Matrix(cells), store)
    records, told = run(plan, Fake(store, new_record), tmp_path)
    wanted = [key(cell_preimage(cell)) for cell in cells]
    assert [record.key for record in records] == wanted
    assert [type(event) for event in told] == [Started, Done] * 8
    assert logged(tmp_path) == sorted(wanted)
    assert read_timings(tmp_path)["fit blobs none"][1] == 4


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), FirstlineError("a worker ended")])
def test_what_was_finished_before_an_end_is_logged(store, cells, new_record, tmp_path, ends):
    with pytest.raises(type(ends)):
        run(make_plan(Matrix(cells), store), Fake(store, new_record, ends, after=3), tmp_path)
    assert len(logged(tmp_path)) == 3
    run(make_plan(Matrix(cells), store), Fake(store, new_record), tmp_path)
    assert sorted(logged(tmp_path)) == sorted(key(cell_preimage(cell)) for cell in cells)


def test_records_of_a_killed_run_are_logged_by_the_next_one(store, cells, new_record, tmp_path):
    store.write(new_record(cells[0]), None)
    run(make_plan(Matrix(cells[:2]), store), Fake(store, new_record), tmp_path)
    assert sorted(logged(tmp_path)) == sorted(key(cell_preimage(cell)) for cell in cells[:2])


def test_a_retried_record_is_logged_again(store, cells, new_record, tmp_path):
    store.write(new_record(cells[0], fails="attack"), None)
    run(make_plan(Matrix(cells[:1]), store), Fake(store, new_record), tmp_path)
    run(make_plan(Matrix(cells[:1]), store, retry=True), Fake(store, new_record), tmp_path)
    assert logged(tmp_path) == [key(cell_preimage(cells[0]))] * 2


def test_workers_are_as_many_as_asked_or_as_there_are_cores(monkeypatch):
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert [workers(5, "cpu"), workers(0, "cpu"), workers(0, "cuda"), workers(2, "cuda")] == [5, 3, 1, 2]


@pytest.mark.parametrize(
    ("code", "words"), [(3, "exit code 3"), (-9, "SIGKILL, perhaps out of memory"), (-11, "SIGSEGV")]
)
def test_a_death_is_told_in_words(code, words):
    assert _death(code) == words


def test_a_pool_without_work_starts_nobody(monkeypatch):
    monkeypatch.setattr(LocalPool, "_start", lambda *_: pytest.fail("a worker was started"))
    LocalPool(2).run([], None, lambda event: None)

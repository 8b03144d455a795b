import errno
import hashlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import OutcomeFile
from firstline.benchmark.run import store as module
from firstline.benchmark.run.store import STALE, Damaged, Store, Unwritable, small, write_whole

ARRAYS = {"ids": np.arange(4), "answer": np.array([1, 0, -1, 2]), "score": np.linspace(0, 1, 4)}
FIT = "f1" * 32


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def written(store, new_cell, new_record):
    return store.write(new_record(new_cell()), ARRAYS)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_read(store, written):
    assert store.read(written.key) == written
    found = store.outcomes(written)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_a_record_lies_below_the_start_of_its_key(store, written):
    place = f"{written.key[:2]}/{written.key}"
    assert files(store.root) == {f"records/{place}.json", f"outcomes/{place}.safetensors"}
    assert store.record_path(written.key).read_text() == written.to_json()


def test_a_record_names_its_arrays(store, written):
    data = store.outcomes_path(written.key).read_bytes()
    assert written.outcomes.sha256 == hashlib.sha256(data).hexdigest()
    assert store.root / written.outcomes.path == store.outcomes_path(written.key)
    assert written.outcomes.columns == sorted(ARRAYS)


def test_a_record_without_arrays_has_none(store, new_cell, new_record):
    record = store.write(new_record(new_cell(), fails="attack"), None)
    assert record.outcomes is None
    assert store.outcomes(record) == {}


def test_arrays_that_are_views_are_stored_whole(store, new_cell, new_record):
    grid = np.arange(12).reshape(3, 4)
    record = store.write(new_record(new_cell()), {"turned": grid.T, "every": grid[:, ::2]})
    np.testing.assert_array_equal(store.outcomes(record)["turned"], grid.T)
    np.testing.assert_array_equal(store.outcomes(record)["every"], grid[:, ::2])


def die_before_the_rename(path):
    """Write path in a process that ends just before the temporary file gets its name."""
    code = (
        "import os, sys, pathlib; os.replace = lambda *names: os._exit(9);"
        "from firstline.benchmark.run.store import write_whole;"
        "write_whole(pathlib.Path(sys.argv[1]), b'new')"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 9


def test_a_death_before_the_rename_leaves_no_half_file(store, written):
    path, before = store.record_path(written.key), store.record_path(written.key).read_bytes()
    other = store.record_path("ab" * 32)
    die_before_the_rename(path)
    die_before_the_rename(other)
    assert path.read_bytes() == before
    assert not other.exists()
    assert store.record_keys() == [written.key]


@pytest.mark.parametrize(
    "name", ["log.jsonl", "exported/a.txt", "records/ab/x.json", "fits/cd/y.safetensors"]
)
def test_leftovers_of_a_killed_run_are_cleared_away(store, name):
    die_before_the_rename(store.root / name)
    (leftover,) = [path for path in store.root.rglob("*") if path.is_file()]
    os.utime(leftover, (time.time() - STALE - 60,) * 2)
    store.prepare()
    assert files(store.root) == set()


def test_another_run_that_starts_meanwhile_takes_nothing_away(store, monkeypatch):
    replace = os.replace

    def meanwhile(*names):
        monkeypatch.setattr(module.os, "replace", replace)
        store.prepare()
        replace(*names)

    store.prepare()
    monkeypatch.setattr(module.os, "replace", meanwhile)
    write_whole(store.root / "records" / "ab" / "x.json", b"whole")
    assert (store.root / "records" / "ab" / "x.json").read_bytes() == b"whole"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(store, monkeypatch, error):
    def refuse(*_):
        raise error

    store.prepare()
    monkeypatch.setattr(module.os, "fsync", refuse)
    with pytest.raises((Unwritable, KeyboardInterrupt)):
        write_whole(store.root / "x", b"data")
    assert files(store.root) == set()


def test_a_full_disk_is_one_line_that_says_what_to_do(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(Unwritable, match=r"No space left on device; free the disk, .* --results") as caught:
        store.prepare()
    assert "\n" not in str(caught.value)


def test_a_file_where_the_folder_should_be_is_one_line(store, new_cell, new_record):
    store.root.write_text("a file")
    with pytest.raises(Unwritable, match=f"cannot write {store.root}: .* choose another one with --results"):
        store.prepare()
    with pytest.raises(Unwritable, match="cannot write"):
        store.write(new_record(new_cell()), None)
    assert store.record_keys() == []
    assert store.glance("ab" * 32) is None


def test_a_file_where_the_records_should_be_is_one_line(store, new_cell, new_record):
    store.prepare()
    (store.root / "records").write_text("a file")
    with pytest.raises(Unwritable, match="choose another one with --results"):
        store.write(new_record(new_cell()), None)


def test_a_glance_sees_whole_records_only(store, written):
    path = store.record_path(written.key)
    good = path.read_bytes()
    assert store.glance(written.key)["status"] == "ok"
    damages = [
        b"", b"{}", b"[]", b"null", b"\xff\x00", good[:-20], b"[" * 100_000,
        good.replace(written.key.encode(), b"0" * 64), good.replace(b'"status"', b'"state"'),
        good.replace(b'"ok"', b'"fine"'), good.replace(b'"ok"', b'"failed"'),
    ]  # fmt: skip
    for damage in damages:
        path.write_bytes(damage)
        assert store.glance(written.key) is None, damage[:40]
    path.unlink()
    assert store.glance(written.key) is None


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"\xff\xfe\x00", b'{"format":"firstline.record/2"}', b"[" * 9999]
)
def test_reading_a_damaged_record_is_one_line_that_names_the_file(store, written, damage):
    store.record_path(written.key).write_bytes(damage)
    with pytest.raises(FirstlineError, match=written.key) as caught:
        store.read(written.key)
    assert "\n" not in str(caught.value)


def test_arrays_that_were_changed_are_not_read(store, written):
    path = store.outcomes_path(written.key)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        Damaged, match=r"was changed since it was written; delete the record and run the cell"
    ):
        store.outcomes(written)
    path.unlink()
    with pytest.raises(Damaged, match=r"cannot read .* delete the record and run the cell again"):
        store.outcomes(written)


def test_the_path_in_a_record_leads_nowhere_else(store, written, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    file = OutcomeFile(path="../secret", sha256=hashlib.sha256(b"x").hexdigest(), columns=[])
    with pytest.raises(Damaged):
        store.outcomes(written.model_copy(update={"outcomes": file}))


@pytest.fixture
def fitted(store):
    state = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}
    store.save_fit(FIT, state, {"seconds": 1.5, "kept": [0, 2]})
    return state


def test_a_stored_system_is_the_one_that_was_fitted(store, fitted):
    assert store.has_fit(FIT)
    state, facts = store.load_fit(FIT)
    assert state.keys() == fitted.keys()
    assert all(torch.equal(state[name], fitted[name]) for name in fitted)
    assert (facts["seconds"], facts["kept"]) == (1.5, [0, 2])


def test_tensors_that_share_memory_are_stored(store):
    whole = torch.arange(4.0)
    store.save_fit(FIT, {"whole": whole, "tied": whole, "part": whole[::2]}, {})
    state, _ = store.load_fit(FIT)
    assert state["tied"].tolist() == [0, 1, 2, 3]
    assert state["part"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        pytest.param(".safetensors", lambda data: data[:-1], id="cut"),
        pytest.param(".safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), id="changed"),
        pytest.param(".safetensors", lambda data: b"", id="empty"),
        pytest.param(".json", lambda data: data[:-5], id="facts cut"),
        pytest.param(".json", lambda data: b"[]", id="facts no table"),
        pytest.param(".json", lambda data: b"{}", id="facts without digest"),
        pytest.param(".json", lambda data: b"\xff", id="facts no text"),
    ],
)
def test_a_damaged_system_is_taken_away_and_fitted_again(store, fitted, suffix, damage):
    path = store.root / "fits" / FIT[:2] / f"{FIT}{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Damaged, match="it is fitted again"):
        store.load_fit(FIT)
    assert not store.has_fit(FIT)
    assert files(store.root) == set()


def test_weights_without_facts_are_no_system(store, fitted):
    (store.root / "fits" / FIT[:2] / f"{FIT}.json").unlink()
    assert not store.has_fit(FIT)


def test_facts_without_weights_are_damage(store, fitted):
    (store.root / "fits" / FIT[:2] / f"{FIT}.safetensors").unlink()
    with pytest.raises(Damaged):
        store.load_fit(FIT)
    assert not store.has_fit(FIT)


def broken_links(store):
    """Return what a reader of the log finds changed: the numbers of its lines, and the keys of records."""
    found, before, last = [], "0" * 64, {}
    for number, line in enumerate((store.root / "log.jsonl").read_bytes().splitlines(), 1):
        entry = json.loads(line)
        if entry["before"] != before:
            found.append(number)
        before = hashlib.sha256(line).hexdigest()
        last[entry["key"]] = entry["sha256"]
    for key, digest in last.items():
        path = store.record_path(key)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            found.append(key)
    return found


@pytest.fixture
def logged(store, new_cell, new_record):
    """The keys of four records, logged by two runs."""
    keys = sorted(store.write(new_record(new_cell(seed=seed)), None).key for seed in range(4))
    store.log(keys[:2])
    store.log(keys)
    return keys


def test_every_record_is_logged_once_in_a_chain(store, logged):
    lines = (store.root / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == logged
    assert broken_links(store) == []


def test_the_log_shows_an_edited_record(store, logged):
    path = store.record_path(logged[1])
    path.write_text(path.read_text().replace('"value":0.5', '"value":0.9'))
    store.log(logged)
    assert broken_links(store) == [logged[1]]


def test_the_log_shows_a_record_that_was_taken_away(store, logged):
    store.record_path(logged[2]).unlink()
    assert broken_links(store) == [logged[2]]


@pytest.mark.parametrize(
    ("edit", "broken"),
    [
        pytest.param(lambda lines: [*lines[:1], *lines[2:]], [2], id="a line is gone"),
        pytest.param(lambda lines: [lines[0], lines[2], lines[1], lines[3]], [2, 3, 4], id="two are swapped"),
        pytest.param(lambda lines: lines[1:], [1], id="the first is gone"),
        pytest.param(lambda lines: [lines[0].replace("{", "{ "), *lines[1:]], [2], id="one is edited"),
    ],
)
def test_the_log_shows_its_own_edits(store, logged, edit, broken):
    path = store.root / "log.jsonl"
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")
    assert broken_links(store) == broken


def test_a_record_that_was_measured_again_is_logged_again(store, new_cell, new_record):
    key = store.write(new_record(new_cell(), fails="infra"), None).key
    store.log([key])
    store.write(new_record(new_cell()), ARRAYS)
    store.log([key], rewritten=[key])
    assert len((store.root / "log.jsonl").read_text().splitlines()) == 2
    assert broken_links(store) == []


@pytest.mark.parametrize("damage", ["{", "3", "[]", "{}", "", "\n\n"])
def test_a_damaged_log_is_one_line_that_says_what_to_do(store, logged, damage):
    path = store.root / "log.jsonl"
    before = path.read_text() + damage + "\n"
    path.write_text(before)
    with pytest.raises(Damaged, match=r"log\.jsonl is damaged; move it away"):
        store.log(logged)
    assert path.read_text() == before


def test_a_record_is_found_by_the_start_of_its_key(store, new_cell, new_record):
    keys = [store.write(new_record(new_cell(seed=seed)), None).key for seed in range(20)]
    assert store.record_keys() == sorted(keys)
    assert [record.key for record in store.records()] == sorted(keys)
    for key in keys:
        assert store.find(key) == key
        assert store.find(key[:12]) == key
    with pytest.raises(
        FirstlineError, match=r"20 records in .* begin with ''; `firstline status --keys` lists"
    ):
        store.find("")
    with pytest.raises(FirstlineError, match=r"no record in .* begins with 'xyz'"):
        store.find("xyz")


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_integers_are_stored_in_the_smallest_type_that_holds_them(size):
    least, most = -(2 ** (size - 1)), 2 ** (size - 1) - 1
    for values in ([least, most], [least], [most], [0, least]):
        array = np.array(values, dtype=np.int64)
        assert small(array).dtype == np.dtype(f"int{size}")
        np.testing.assert_array_equal(small(array).astype(np.int64), array)
    if size < 64:
        assert small(np.array([most + 1])).dtype.itemsize == 2 * size // 8
        assert small(np.array([least - 1])).dtype.itemsize == 2 * size // 8


@pytest.mark.parametrize("array", [np.zeros(0, np.int64), np.array([0.5, np.nan]), np.array([True, False])])
def test_what_is_no_row_of_integers_keeps_its_type(array):
    assert small(array).dtype == array.dtype
    np.testing.assert_array_equal(small(array), array)


def test_a_stream_lies_below_the_start_of_its_key_and_is_read(store, new_stream):
    stream = new_stream()
    store.write_stream(stream)
    assert files(store.root) == {f"streams/{stream.key[:2]}/{stream.key}.json"}
    assert store.stream_keys() == [stream.key]
    assert store.read_stream(stream.key) == stream


def test_the_stream_of_another_key_is_one_line(store, new_stream):
    key = "ab" * 32
    write_whole(store.stream_path(key), new_stream().to_json().encode())
    with pytest.raises(Damaged, match=f"{key}.json is the record of another stream; delete the file"):
        store.read_stream(key)

"""Adult, on small files in UCI's and OpenML's formats, and on the real one where it is."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import torch

from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.defenses.none import NoDefense
from firstline.tasks import adult
from firstline.tasks.adult import COLUMNS, SPACE, Adult

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HEADER = [column.name for column in COLUMNS]
HEADER.insert(4, "education-num")


def people(count: int, first: int = 0) -> list[list[str]]:
    """Rows that UCI's files could hold, all different."""
    rows = []
    for number in range(first, first + count):
        row = [
            column.categories[number % len(column.categories)]
            if column.categories
            else str(column.low + number % (column.span + 1))
            for column in COLUMNS
        ]
        row.insert(4, "9")
        rows.append([*row, (">50K", "<=50K")[number % 2]])
    return rows


ROWS = people(60)


@pytest.fixture
def small(monkeypatch):
    """A task that takes small files for the official ones."""
    monkeypatch.setattr(Adult, "fingerprint", "")
    monkeypatch.setattr(adult, "TRAIN", 40)
    monkeypatch.setattr(adult, "TEST", 12)
    return Adult()


def write_uci(folder: Path, rows: list[list[str]] = ROWS) -> Path:
    """Write adult.data and adult.test as UCI gives them: no header, a comment, full stops, a blank line."""
    place = folder / "adult"
    place.mkdir(parents=True, exist_ok=True)
    lines = [", ".join(row) for row in rows]
    (place / "adult.data").write_text("\n".join(lines[:40]) + "\n\n")
    (place / "adult.test").write_text("|1x3 Cross validator\n" + "".join(f"{line}.\n" for line in lines[40:]))
    return folder


def write_csv(folder: Path, *, packed: bool) -> Path:
    """Write the same rows with a header."""
    place = folder / "adult"
    place.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", ROWS[:40]), ("test", ROWS[40:])):
        text = "\n".join(",".join(row) for row in [[*HEADER, "income"], *rows])
        if packed:
            (place / f"adult_{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (place / f"adult_{name}.csv").write_text(text)
    return folder


def write_openml(cache: Path, rows: list[list[str]] = ROWS) -> None:
    """Write what scikit-learn keeps of OpenML's answers, so that it need not ask."""

    def put(path: str, content: bytes) -> None:
        place = cache / "firstline" / "data" / "openml" / "openml.org" / f"{path}.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(gzip.compress(content))

    kinds = {column.name: column.categories for column in COLUMNS} | {"class": (">50K", "<=50K")}
    lines = ["@RELATION adult"]
    for name in [*HEADER, "class"]:
        values = [value for value in kinds.get(name, ()) if value != "?"]
        lines.append(f"@ATTRIBUTE {name} " + (f"{{{','.join(values)}}}" if values else "NUMERIC"))
    # Another order than UCI's: the test rows come first there.
    lines += ["@DATA", *(",".join(row) for row in rows[40:] + rows[:40])]
    arff = "\n".join(lines).encode()
    put("data/v1/download/1595261/adult.arff", arff)
    about = {
        "id": "1590",
        "name": "adult",
        "description": "as UCI has it",
        "version": "2",
        "status": "active",
        "format": "ARFF",
        "url": "https://www.openml.org/data/v1/download/1595261/adult.arff",
        "md5_checksum": hashlib.md5(arff).hexdigest(),
    }
    features = [
        {
            "index": str(index),
            "name": name,
            "data_type": "nominal" if kinds.get(name) else "numeric",
            "is_target": str(name == "class").lower(),
            "is_ignore": "false",
            "is_row_identifier": "false",
            "number_of_missing_values": "0",
        }
        for index, name in enumerate([*HEADER, "class"])
    ]
    qualities = [{"name": "NumberOfInstances", "value": f"{len(rows)}.0"}]
    put("api/v1/json/data/1590", json.dumps({"data_set_description": about}).encode())
    put("api/v1/json/data/features/1590", json.dumps({"data_features": {"feature": features}}).encode())
    put("api/v1/json/data/qualities/1590", json.dumps({"data_qualities": {"quality": qualities}}).encode())


def test_all_sources_give_the_same_data(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_openml(tmp_path / "cache")
    found = {
        small.load(folder).fingerprint()
        for folder in (
            write_uci(tmp_path / "uci"),
            write_csv(tmp_path / "csv", packed=False),
            write_csv(tmp_path / "gz", packed=True),
            None,
        )
    }
    assert len(found) == 1


def test_rows_say_what_the_file_says(small, tmp_path):
    splits = small.load(write_uci(tmp_path))
    x = torch.cat([splits.train.x, splits.test.x, splits.aux.x])
    y = torch.cat([splits.train.y, splits.test.y, splits.aux.y])
    assert (len(splits.train), len(splits.test), len(splits.aux)) == (40, 12, 8)
    written = set()
    for row, label in zip(x.tolist(), y.tolist(), strict=True):
        said = [
            column.categories[round(value)]
            if column.categories
            else str(round(column.low + value * column.span))
            for column, value in zip(COLUMNS, row, strict=True)
        ]
        said.insert(4, "9")
        written.add((*said, (">50K" if label else "<=50K")))
    assert written == {tuple(row) for row in ROWS}
    assert SPACE.check(x) is None
    assert torch.equal(SPACE.round(x), x)  # so that a point that nobody moved stays the same point


def test_a_row_that_occurs_twice_is_taken_once(small, tmp_path):
    splits = small.load(write_uci(tmp_path, ROWS + ROWS[:7]))
    assert sum(len(data) for data in (splits.train, splits.test, splits.aux)) == len(ROWS)


def test_what_can_be_changed_has_a_price_and_a_grid():
    space = Adult().space
    able = dict(zip(space.features, space.mutable, strict=True))
    assert {name for name, yes in able.items() if yes} == {
        "age",
        "workclass",
        "education",
        "occupation",
        "capital-gain",
        "capital-loss",
        "hours-per-week",
    }
    assert all(grid > 0 for grid, yes in zip(space.grid, space.mutable, strict=True) if yes)
    x = torch.zeros(1, 13)
    for name, change, price in (
        ("age", 5 / 73, 1),
        ("hours-per-week", 20 / 98, 2),
        ("capital-gain", 2000 / 99_999, 1),
        ("workclass", 4, 1),
        ("education", 1, 2),
    ):
        moved = x.clone()
        moved[0, space.features.index(name)] = change
        assert space.cost(moved, x).item() == pytest.approx(price, rel=1e-5), name


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda place: (place / "adult.test").unlink(),
            "no adult.test, adult_test.csv or adult_test.csv.gz in",
        ),
        (lambda place: (place / "adult.data").write_bytes(b"\xff\xfe\xfa"), "adult.data can't be read"),
        (lambda place: (place / "adult.data").write_text("1,2,3\n"), "has 3 fields instead of 15"),
        (lambda place: write_uci(place.parent, [["7", *ROWS[0][1:]], *ROWS]), "'7' as age"),
        (lambda place: write_uci(place.parent, [["40.5", *ROWS[0][1:]], *ROWS]), "'40.5' as age"),
        (lambda place: write_uci(place.parent, [[ROWS[0][0], "Spy", *ROWS[0][2:]]]), "'Spy' as workclass"),
        (lambda place: write_uci(place.parent, [[*ROWS[0][:-1], "rich"]]), "'rich' as income"),
    ],
)
def test_damaged_files_are_a_problem_that_says_where(small, tmp_path, break_it, message):
    break_it(write_uci(tmp_path) / "adult")
    with pytest.raises(DataProblem, match=message):
        small.load(tmp_path)


def test_other_data_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataProblem, match="instead of 46d178b0"):
        Adult().load(write_uci(tmp_path, people(200)))


def test_a_download_that_fails_says_what_to_do(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def unreachable(**settings):
        raise OSError("no network")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    with pytest.raises(DataProblem, match=r"could not be downloaded .*no network.*name a folder"):
        small.load(None)


@pytest.mark.skipif(not (SHARED / "adult").is_dir(), reason="the real files are not here")
def test_the_real_data_is_the_pinned_one_and_the_recipe_learns_it():
    splits = Adult().load(SHARED)
    assert (len(splits.train), len(splits.test), len(splits.aux)) == (28_000, 10_000, 10_790)
    fitted = Stack((NoDefense(),)).fit(Adult(), splits.train, Streams(0), torch.device("cpu"))
    right = fitted.system.respond(splits.test.x, torch.Generator()).labels == splits.test.y
    assert float(right.float().mean()) > 0.85

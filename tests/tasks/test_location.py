"""Location-30, on small files in the formats of its authors and of packed bits, and on the real one where it is."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.defenses.none import NoDefense
from firstline.tasks import location
from firstline.tasks.location import Location30

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
BITS = np.random.default_rng(0).random((60, 446)) < 0.12
CLASSES = np.arange(60) % 30


@pytest.fixture
def small(monkeypatch):
    """A task that takes small files for the official one."""
    monkeypatch.setattr(Location30, "fingerprint", "")
    monkeypatch.setattr(location, "TRAIN", 40)
    monkeypatch.setattr(location, "TEST", 12)
    return Location30()


def text(bits=BITS, classes=CLASSES, mark='"') -> str:
    """The rows as the authors write them: the class from 1 in quotation marks, then the features."""
    rows = (
        f"{mark}{label + 1}{mark}," + ",".join(map(str, row.astype(int)))
        for row, label in zip(bits, classes, strict=True)
    )
    return "\n".join(rows) + "\n"


def write(folder: Path, name: str, content: bytes) -> Path:
    """Write one file into the task's folder; return the data folder."""
    (folder / "location30").mkdir(parents=True, exist_ok=True)
    (folder / "location30" / name).write_bytes(content)
    return folder


def packed(content: bytes, name: str = "bangkok") -> bytes:
    """An archive of one file."""
    kept = io.BytesIO()
    with tarfile.open(fileobj=kept, mode="w:gz") as archive:
        about = tarfile.TarInfo(name)
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    return kept.getvalue()


def arrays(**changed) -> bytes:
    """The .npz of packed bits."""
    kept = io.BytesIO()
    np.savez(kept, **({"x_packed": np.packbits(BITS, axis=1), "n_features": 446, "y": CLASSES} | changed))
    return kept.getvalue()


def test_all_formats_give_the_same_data(small, tmp_path):
    order = np.random.default_rng(1).permutation(60)
    files = [
        ("bangkok", text().encode()),
        ("bangkok.csv", text(BITS[order], CLASSES[order], mark="").encode()),
        ("dataset_location.tgz", packed(text().encode())),
        ("location30.npz", arrays()),
    ]
    found = {small.load(write(tmp_path / name, name, content)).fingerprint() for name, content in files}
    assert len(found) == 1


def test_rows_say_what_the_file_says(small, tmp_path):
    splits = small.load(write(tmp_path, "bangkok", text().encode()))
    parts = (splits.train, splits.test, splits.aux)
    assert [len(part) for part in parts] == [40, 12, 8]
    read = {
        (*row, label) for part in parts for row, label in zip(part.x.tolist(), part.y.tolist(), strict=True)
    }
    assert read == {
        (*row, label) for row, label in zip(BITS.astype(float).tolist(), CLASSES.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other.csv", b"", r"no dataset_location.tgz, .* or location30.npz in .*github.com/privacytrustlab"),
        ("bangkok", b"\xff\xfe\xfa", "bangkok can't be read"),
        ("bangkok", b"", "bangkok can't be read .*no rows"),
        ("bangkok", b"1,0,1\n2,0\n", "bangkok can't be read"),
        ("bangkok", b"1,0,1\n2,0,x\n", "bangkok can't be read"),
        ("bangkok", b"1,0,1\n2,0,1\n", "3 columns instead of 447"),
        ("bangkok", text(2 * BITS.astype(int)).encode(), "features other than 0 and 1"),
        ("bangkok", text(classes=CLASSES + 1).encode(), "classes other than 1 to 30"),
        ("dataset_location.tgz", b"no archive", "dataset_location.tgz can't be read"),
        ("dataset_location.tgz", packed(text().encode())[:-200], "dataset_location.tgz can't be read"),
        ("dataset_location.tgz", packed(b"", "other"), "dataset_location.tgz can't be read"),
        ("location30.npz", b"no arrays", "location30.npz can't be read"),
        ("location30.npz", arrays()[:900], "location30.npz can't be read"),
        ("location30.npz", arrays(y=CLASSES[:9]), "location30.npz can't be read"),
    ],
    ids=[
        "no file",
        "not text",
        "empty",
        "too few",
        "no number",
        "columns",
        "not bits",
        "classes",
        "no archive",
        "cut short",
        "no member",
        "no arrays",
        "arrays cut short",
        "lengths",
    ],  # a packed file holds the time, and names must be the same in every process
)
def test_damaged_files_are_a_problem_that_says_where(small, tmp_path, name, content, message):
    with pytest.raises(DataProblem, match=message):
        small.load(write(tmp_path, name, content))


def test_other_data_is_refused(tmp_path):
    with pytest.raises(DataProblem, match="instead of 46c44b99"):
        Location30().load(write(tmp_path, "bangkok", text().encode()))


def test_without_a_folder_it_says_where_to_get_the_file():
    with pytest.raises(
        DataProblem, match=r"not downloaded by firstline; get dataset_location\.tgz from .*--data-dir"
    ):
        Location30().load(None)


@pytest.mark.skipif(not (SHARED / "location30").is_dir(), reason="the real file is not here")
def test_the_real_data_is_the_pinned_one_and_a_network_knows_half_of_it_by_heart():
    splits = Location30().load(SHARED)
    assert (len(splits.train), len(splits.test), len(splits.aux)) == (3000, 1010, 1000)
    half = splits.train.rows(torch.arange(1500))
    fitted = Stack((NoDefense(),)).fit(Location30(), half, Streams(0), torch.device("cpu"))
    right = [
        float((fitted.system.respond(data.x, torch.Generator()).labels == data.y).float().mean())
        for data in (half, splits.test)
    ]
    assert right[0] == 1.0
    assert right[1] == pytest.approx(0.656, abs=0.04)  # 0.643, sd 0.012, over 8 random halves

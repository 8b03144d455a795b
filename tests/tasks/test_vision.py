"""The torchvision tasks, on small files in the official formats, and on the real ones where these are."""

import gzip
import hashlib
import io
import pickle
import re
import struct
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST

from firstline.benchmark.core.errors import DataProblem, FirstlineError
from firstline.tasks import vision
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits
from firstline.tasks.splits import verified
from firstline.tasks.vision import Cifar10, FashionMnist, Mnist

SHARED = Path(__file__).resolve().parents[3] / "shared"
TRAIN, TEST, AUX = 60, 20, 15  # rows of the small files, and how many of the first go to aux
TASKS = {"mnist": Mnist, "fashion-mnist": FashionMnist, "cifar10": Cifar10}


def numbered(first: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Images (count, *shape) of noise whose first pixel is their number, so that each can be told."""
    pixels = np.random.default_rng(first).integers(0, 256, (count, *shape), dtype=np.uint8)
    pixels.reshape(count, -1)[:, 0] = np.arange(first, first + count)
    return pixels


def numbers(x: torch.Tensor) -> list[int]:
    return [round(float(v) * 255) for v in x.flatten(1)[:, 0]]


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_grey(raw: Path) -> None:
    for kind, first, count in (("train", 0, TRAIN), ("t10k", TRAIN, TEST)):
        write_idx(raw / f"{kind}-images-idx3-ubyte", numbered(first, count, (28, 28)))
        write_idx(raw / f"{kind}-labels-idx1-ubyte", (np.arange(first, first + count) % 10).astype(np.uint8))


class OldPickler(pickle.Pickler):
    """Writes data types as NumPy did in 2009, align and copy being numbers: NumPy 2.4.0 to 2.4.4 warn."""

    def reducer_override(self, thing):
        if isinstance(thing, np.dtype):
            return np.dtype, (thing.str[1:], 0, 1), thing.__reduce__()[2]
        return NotImplemented


def write_pickle(path: Path, thing: object) -> str:
    """Write thing as the official files were, and return the file's MD5 sum."""
    stream = io.BytesIO()
    OldPickler(stream, protocol=2).dump(thing)
    path.write_bytes(stream.getvalue())
    return hashlib.md5(stream.getvalue()).hexdigest()


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    sums = []
    per_file = TRAIN // 5
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        count = TEST if name == "test_batch" else per_file
        labels = [number % 10 for number in range(i * per_file, i * per_file + count)]
        batch = {"data": numbered(i * per_file, count, (3072,)), "labels": labels}
        sums.append([name, write_pickle(folder / name, batch)])
    meta = write_pickle(folder / "batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})


@pytest.fixture
def unpinned(monkeypatch):
    """Tasks that take small files for the official ones."""
    monkeypatch.setattr(vision, "AUX", AUX)
    for cls in TASKS.values():
        monkeypatch.setattr(cls, "fingerprint", "")


@pytest.fixture(params=list(TASKS))
def small(request, tmp_path, monkeypatch, unpinned):
    """A task, and a data folder with small files of its format."""
    cls = TASKS[request.param]
    if cls is Cifar10:
        write_cifar(tmp_path / cls.place, monkeypatch)
    else:
        write_grey(tmp_path / cls.place)
    return cls(), tmp_path


def says(*parts: object) -> str:
    """A pattern for one line that holds these parts in this order."""
    return "^" + ".*".join(["", *(re.escape(str(part)) for part in parts), ""]) + "$"


def test_the_official_test_set_is_kept_and_the_training_set_cut(small):
    task, folder = small
    splits = task.load(folder)
    for data, count in ((splits.train, TRAIN - AUX), (splits.test, TEST), (splits.aux, AUX)):
        assert data.x.shape == (count, *task.space.shape)
        assert data.x.dtype == torch.float32
        assert data.y.dtype == torch.int64
        assert data.ids.tolist() == list(range(count))
    assert numbers(splits.test.x) == list(range(TRAIN, TRAIN + TEST))


def test_no_image_is_in_two_splits_and_none_is_lost(small):
    task, folder = small
    splits = task.load(folder)
    train, aux = numbers(splits.train.x), numbers(splits.aux.x)
    assert sorted(train + aux) == list(range(TRAIN))


def test_labels_and_pixels_stay_with_their_image(small):
    task, folder = small
    splits = task.load(folder)
    official = {}
    for data in (splits.train, splits.test, splits.aux):
        assert data.y.tolist() == [number % 10 for number in numbers(data.x)]
        official |= dict(zip(numbers(data.x), data.x, strict=True))
    test = np.stack([(official[number] * 255).round().numpy() for number in range(TRAIN, TRAIN + TEST)])
    assert (test == numbered(TRAIN, TEST, task.space.shape)).all()


def test_the_cut_is_the_same_each_time(small):
    task, folder = small
    assert task.load(folder).fingerprint() == task.load(folder).fingerprint()


def test_pixels_are_in_the_range_and_on_the_grid(small):
    task, folder = small
    x = task.load(folder).train.x
    assert task.space.check(x) is None
    assert float(x.max()) == 1.0
    assert torch.equal(task.space.round(x), x)


def test_without_grid_the_data_are_the_same_and_rounding_is_off(small):
    task, folder = small
    real = type(task)(grid=False)
    assert real.load(folder).fingerprint() == task.load(folder).fingerprint()
    x = torch.full((1, *task.space.shape), 0.3333)
    assert torch.equal(real.space.round(x), x)
    assert not torch.equal(task.space.round(x), x)


def test_a_limit_keeps_the_first_training_images_and_nothing_else_changes(small):
    task, folder = small
    whole, part = task.load(folder), type(task)(limit=7).load(folder)
    assert torch.equal(part.train.ids, whole.train.ids[:7])
    assert torch.equal(part.train.x, whole.train.x[:7])
    assert len(part.test) == len(whole.test)
    assert len(part.aux) == len(whole.aux)
    assert len(type(task)(limit=10**6).load(folder).train) == len(whole.train)


def test_a_network_that_is_named_is_the_default_and_the_others_stay(small):
    task, _ = small
    for name, architecture in task.architectures.items():
        named = type(task)(network=name)
        assert next(iter(named.architectures)) == name
        assert named.default.recipe == architecture.recipe
        assert str(named.default.build()) == str(architecture.build())
        assert sorted(named.architectures) == sorted(task.architectures)


@pytest.mark.parametrize("wrong", [{"limit": -1}, {"network": "perceptron"}])
def test_settings_that_make_no_sense_are_refused(small, wrong):
    with pytest.raises(FirstlineError, match=r"limit is a number|no network of"):
        type(small[0])(**wrong)


def test_each_architecture_answers_for_every_class(small):
    task, folder = small
    x = task.load(folder).test.x
    for architecture in task.architectures.values():
        assert architecture.build().eval()(x).shape == (TEST, 10)


@pytest.mark.parametrize("name", list(TASKS))
def test_a_missing_folder_is_named_with_the_remedy(name, tmp_path):
    task, folder = TASKS[name](), tmp_path / "nowhere"
    with pytest.raises(DataProblem, match=says(name, folder / task.place, "--data-dir", "FIRSTLINE_DATA")):
        task.load(folder)


def test_every_missing_file_is_named(small):
    task, folder = small
    for name in task.files:
        path = folder / task.place / name
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(DataProblem, match=says(task.name, name, path.parent, "--data-dir")):
            task.load(folder)
        path.write_bytes(content)


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "other": lambda content: b"not what it was" * 100,
    "changed header": lambda content: content[:3] + bytes([content[3] ^ 1]) + content[4:],
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_every_damaged_file_is_a_data_problem(small, damage):
    task, folder = small
    for name in task.files:
        path = folder / task.place / name
        content = path.read_bytes()
        path.write_bytes(DAMAGE[damage](content))
        with pytest.raises(DataProblem, match=says(task.name, path.parent, "can't be read", "--data-dir")):
            task.load(folder)
        path.write_bytes(content)


def test_as_many_labels_as_images_are_wanted(tmp_path, unpinned):
    write_grey(tmp_path / Mnist.place)
    write_idx(tmp_path / Mnist.place / "train-labels-idx1-ubyte", np.zeros(TRAIN - 1, np.uint8))
    with pytest.raises(DataProblem, match=says("mnist", tmp_path / Mnist.place, f"{TRAIN - 1} labels")):
        Mnist().load(tmp_path)


def test_images_of_another_size_are_refused(tmp_path, unpinned):
    write_grey(tmp_path / Mnist.place)
    write_idx(tmp_path / Mnist.place / "train-images-idx3-ubyte", numbered(0, TRAIN, (20, 20)))
    with pytest.raises(DataProblem, match=says("mnist", tmp_path / Mnist.place, "(60, 1, 20, 20)")):
        Mnist().load(tmp_path)


@pytest.mark.parametrize("cls", [Mnist, FashionMnist])
def test_whole_files_with_other_images_have_another_fingerprint(cls, tmp_path):
    write_grey(tmp_path / cls.place)
    pattern = says(cls.name, tmp_path / cls.place, "instead of", cls.fingerprint, "get the original files")
    with pytest.raises(DataProblem, match=pattern):
        cls().load(tmp_path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_strange_cifar_file_is_never_unpickled(tmp_path, monkeypatch):
    write_cifar(tmp_path / Cifar10.place, monkeypatch)
    write_pickle(tmp_path / Cifar10.place / "test_batch", Bomb(tmp_path / "exploded"))
    with pytest.raises(DataProblem, match="can't be read"):
        Cifar10().load(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_failed_download_is_a_data_problem_and_leaves_nothing_behind(name, tmp_path, monkeypatch):
    task, closed = TASKS[name](), "http://127.0.0.1:9/"  # the port of "discard", where nothing listens
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "mirrors", [closed])
    monkeypatch.setattr(CIFAR10, "url", closed + CIFAR10.filename)
    root = tmp_path / "firstline" / "data"
    with pytest.raises(
        DataProblem, match=says(name, "downloaded into", root, "--data-dir", "FIRSTLINE_DATA")
    ):
        task.load(None)
    assert list(root.iterdir()) == []


@pytest.fixture
def mirror(tmp_path, monkeypatch, unpinned):
    """A server with small MNIST files, in place of the official mirrors; and the cache folder to fill."""
    site, sums = tmp_path / "site", []
    write_grey(site)
    for path in list(site.iterdir()):
        packed = site / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        sums.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(MNIST, "resources", sums)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield tmp_path / "cache" / "firstline" / "data"
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def test_a_download_is_made_once_and_kept(mirror, monkeypatch):
    first = Mnist().load(None)
    assert [path.name for path in mirror.iterdir()] == ["MNIST"]
    monkeypatch.setattr(MNIST, "mirrors", [])
    assert Mnist().load(None).fingerprint() == first.fingerprint()
    assert Mnist().load(mirror).fingerprint() == first.fingerprint()


def test_a_damaged_download_is_deleted_and_made_again(mirror):
    Mnist().load(None)
    (mirror / Mnist.place / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(DataProblem, match=says("mnist", "can't be read", f"delete {mirror / 'MNIST'}")):
        Mnist().load(None)
    for path in (mirror / Mnist.place).iterdir():
        path.unlink()
    (mirror / Mnist.place).rmdir()
    (mirror / "MNIST").rmdir()
    assert len(Mnist().load(None).test) == TEST


@pytest.mark.parametrize("cls", [Digits, BreastCancer])
def test_embedded_data_are_checked_against_their_fingerprint(cls, monkeypatch):
    found = cls().load(None).fingerprint()
    assert found == cls.fingerprint
    monkeypatch.setattr(cls, "fingerprint", "0" * 64)
    with pytest.raises(DataProblem, match=says(cls.name, found, "0" * 64, "reinstall")):
        cls().load(None)


def test_an_empty_fingerprint_pins_nothing():
    splits = BreastCancer().load(None)
    assert verified(splits, "", "x") is splits


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A data folder with the real files, laid out once."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data are not here: no {SHARED}")
    folder = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, SHARED / "data" / "lay_out.py", folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("cls", [Mnist, FashionMnist])
def test_the_real_files_have_the_pinned_fingerprint(cls, real):
    if not (real / cls.place).is_dir():
        pytest.skip(f"{cls.reader} is not here: install the Debian package dataset-fashion-mnist")
    splits = cls().load(real)
    assert splits.fingerprint() == cls.fingerprint
    assert [len(data) for data in (splits.train, splits.test, splits.aux)] == [50_000, 10_000, 10_000]
    assert cls().space.check(splits.train.x) is None


def test_mnist_has_its_known_mean_and_first_digits(real):
    splits = Mnist().load(real)
    pixels = torch.cat([splits.train.x, splits.aux.x]).double()
    assert float(pixels.mean()) == pytest.approx(0.13066, abs=1e-5)
    assert splits.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]

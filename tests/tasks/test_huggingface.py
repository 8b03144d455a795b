"""The Hugging Face tasks, on small Parquet files, and on the real ones where these are."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.errors import DataProblem, FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import train
from firstline.tasks.huggingface import HuggingFaceImages, HuggingFaceText, tokens

datasets = pytest.importorskip("datasets", reason="the extra 'hf' is not installed")
Image = pytest.importorskip("PIL.Image", reason="the extra 'hf' is not installed")

SHARED = Path(__file__).resolve().parents[3] / "shared"
TRAIN, TEST = 25, 10


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep what `datasets` writes out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def numbered(number: int, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> Image.Image:
    """An image of noise whose first value is its number, so that it can be told."""
    width, height = size
    shape = (height, width) if mode == "L" else (height, width, 3)
    pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    pixels.reshape(-1)[0] = number
    return Image.fromarray(pixels)


def numbers(x: torch.Tensor) -> list[int]:
    return [round(float(v) * 255) for v in x.flatten(1)[:, 0]]


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def rows(first: int, count: int, **how) -> list[dict]:
    """Rows as the hub's data sets hold them: the image's bytes, and the label, its number modulo 10."""
    return [
        {"img": {"bytes": png(numbered(n, **how)), "path": None}, "label": n % 10}
        for n in range(first, first + count)
    ]


def write(path: Path, table: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), path)


@pytest.fixture
def place(tmp_path):
    """The folder of a small image data set below a data folder, its training split in two files."""
    place = tmp_path / "hf" / "cifar10"
    write(place / "train-00000-of-00002.parquet", rows(0, 10))
    write(place / "train-00001-of-00002.parquet", rows(10, TRAIN - 10))
    write(place / "test-00000-of-00001.parquet", rows(TRAIN, TEST))
    return place


def data_folder(place: Path) -> Path:
    return place.parent.parent


def refusal(task, folder: Path | None) -> str:
    """The message of the DataProblem that loading ends in: one line, with no other error behind it."""
    with pytest.raises(DataProblem) as caught:
        task.load(folder)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(task.name)
    return message


def test_a_fifth_of_the_training_split_is_aux(place):
    task = HuggingFaceImages()
    splits = task.load(data_folder(place))
    for data, count in ((splits.train, 20), (splits.test, TEST), (splits.aux, 5)):
        assert data.x.shape == (count, 3, 32, 32)
        assert data.x.dtype == torch.float32
        assert data.y.dtype == torch.int64
        assert data.y.tolist() == [number % 10 for number in numbers(data.x)]
        assert data.ids.tolist() == list(range(count))


def test_no_image_is_in_two_splits_and_none_is_lost(place):
    splits = HuggingFaceImages().load(data_folder(place))
    assert sorted(numbers(splits.train.x) + numbers(splits.aux.x)) == list(range(TRAIN))
    assert sorted(numbers(splits.test.x)) == list(range(TRAIN, TRAIN + TEST))


def test_pixels_are_those_of_the_image_and_on_the_grid(place):
    task = HuggingFaceImages()
    x = task.load(data_folder(place)).test.x
    wanted = np.stack([np.asarray(numbered(number)).transpose(2, 0, 1) for number in numbers(x)])
    assert ((x * 255).round().numpy() == wanted).all()
    assert task.space.check(x) is None
    assert torch.equal(task.space.round(x), x)


def test_a_limit_keeps_the_first_rows_of_each_split(place):
    whole = HuggingFaceImages().load(data_folder(place))
    part = HuggingFaceImages(limit=7).load(data_folder(place))
    for name, count in (("train", 7), ("test", 7), ("aux", 5)):
        assert torch.equal(getattr(part, name).x, getattr(whole, name).x[:count])
        assert torch.equal(getattr(part, name).y, getattr(whole, name).y[:count])


def test_columns_splits_shape_and_path_are_settings(tmp_path):
    table = [{"image": row["img"], "digit": row["label"]} for row in rows(0, TRAIN, mode="L", size=(20, 28))]
    write(tmp_path / "hf" / "grey" / "training-0.parquet", table)
    write(tmp_path / "hf" / "grey" / "validation-0.parquet", table[:TEST])
    task = HuggingFaceImages(
        path="some-one/grey",
        image="image",
        label="digit",
        shape=(1, 28, 20),
        train_split="training",
        test_split="validation",
    )
    splits = task.load(tmp_path)
    assert splits.train.x.shape == (20, 1, 28, 20)
    for architecture in task.architectures.values():
        assert architecture.build().eval()(splits.test.x).shape == (TEST, 10)


def test_a_fingerprint_that_is_given_is_checked(place):
    found = HuggingFaceImages().load(data_folder(place)).fingerprint()
    assert HuggingFaceImages(fingerprint=found).load(data_folder(place)).fingerprint() == found
    message = refusal(HuggingFaceImages(fingerprint="0" * 64), data_folder(place))
    for part in (found, "0" * 64, str(place), "get the original files again"):
        assert part in message


@pytest.mark.parametrize("task", [HuggingFaceImages(), HuggingFaceText()], ids=str)
def test_a_missing_folder_is_named_with_the_remedy(task, tmp_path):
    message = refusal(task, tmp_path / "nowhere")
    wanted = tmp_path / "nowhere" / "hf" / task.path.rpartition("/")[2]
    for part in (str(wanted), task.path, "--data-dir", "FIRSTLINE_DATA"):
        assert part in message


def test_a_missing_split_is_named(place):
    (place / "test-00000-of-00001.parquet").unlink()
    message = refusal(HuggingFaceImages(), data_folder(place))
    assert f"no test-*.parquet in {place}" in message


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: b"other" * 99, lambda content: content[: len(content) // 2]],
    ids=["empty", "other", "truncated"],
)
def test_a_damaged_file_is_a_data_problem(place, damage):
    path = place / "train-00001-of-00002.parquet"
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(HuggingFaceImages(), data_folder(place))
    for part in (str(place), "can't be read", "again"):
        assert part in message


def cut_short(row: dict) -> dict:
    return {**row, "img": {"bytes": row["img"]["bytes"][:500], "path": None}}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda row: {**row, "label": 10}, "row 3 has the label 10"),
        (lambda row: {**row, "label": -1}, "row 3 has the label -1"),
        (lambda row: {**row, "label": None}, "row 3 has the label None"),
        (lambda row: {**row, "img": None}, "row 3 is no image"),
        (lambda row: rows(3, 1, mode="L")[0], "row 3 is an image of 32x32 in mode L"),
        (lambda row: rows(3, 1, size=(32, 31))[0], "row 3 is an image of 32x31 in mode RGB"),
        (cut_short, "can't be read"),
    ],
    ids=["label too high", "label below 0", "no label", "no image", "grey", "small", "cut short"],
)
def test_a_row_that_is_not_what_the_settings_say_is_named(place, change, part):
    table = rows(0, TEST)
    table[3] = change(table[3])
    write(place / "test-00000-of-00001.parquet", table)
    message = refusal(HuggingFaceImages(), data_folder(place))
    assert part in message
    assert str(place) in message


@pytest.mark.parametrize(
    ("task", "part"),
    [
        (HuggingFaceImages(image="picture"), "no column 'picture' among img, label"),
        (HuggingFaceImages(label="fine_label"), "no column 'fine_label' among img, label"),
        (HuggingFaceImages(image="label", label="img"), "column 'label' holds no images"),
    ],
)
def test_a_column_that_is_not_there_or_holds_something_else_is_named(place, task, part):
    assert part in refusal(task, data_folder(place))


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (HuggingFaceImages, {"shape": (32, 32)}),
        (HuggingFaceImages, {"shape": (4, 32, 32)}),
        (HuggingFaceImages, {"shape": (3, 32, 3)}),
        (HuggingFaceImages, {"classes": 1}),
        (HuggingFaceImages, {"limit": -1}),
        (HuggingFaceText, {"classes": 1}),
        (HuggingFaceText, {"length": 0}),
        (HuggingFaceText, {"vocabulary": 1}),
    ],
)
def test_settings_that_make_no_sense_are_refused(cls, wrong):
    with pytest.raises(FirstlineError, match=next(iter(wrong))):
        cls(**wrong)


@pytest.mark.parametrize("task", [HuggingFaceImages(), HuggingFaceText()], ids=str)
def test_without_the_package_the_remedy_is_to_install_it(task, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'firstline[hf]'" in refusal(task, tmp_path)


def test_without_a_folder_the_hub_is_asked_for_the_path(place, monkeypatch):
    def load_dataset(path):
        assert path == "uoft-cs/cifar10"
        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_parquet([str(p) for p in sorted(place.glob(f"{name}-*"))])
                for name in ("train", "test")
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = HuggingFaceImages()
    assert task.load(None).fingerprint() == task.load(data_folder(place)).fingerprint()
    message = refusal(HuggingFaceImages(test_split="validation"), None)
    assert "no split 'validation', it has train, test" in message


@pytest.mark.parametrize("task", [HuggingFaceImages(), HuggingFaceText()], ids=str)
def test_a_failed_download_is_a_data_problem(task, monkeypatch):
    def load_dataset(path):
        raise ConnectionError(f"Couldn't reach\n{path}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal(task, None)
    for part in (f"Couldn't reach {task.path}", "network", "--data-dir", "FIRSTLINE_DATA"):
        assert part in message


def test_tokens_are_the_same_on_every_machine():
    assert tokens("Win £1000 cash!", length=6, vocabulary=8192) == [514, 4094, 3080, 1461, 6514, 0]


@given(st.text(), st.integers(1, 20), st.integers(2, 1000))
@settings(deadline=None)
def test_tokens_are_in_the_vocabulary_and_padding_comes_last(text, length, vocabulary):
    codes = tokens(text, length=length, vocabulary=vocabulary)
    assert len(codes) == length
    words = [code for code in codes if code]
    assert codes == words + [0] * (length - len(words))
    assert all(0 < code < vocabulary for code in words)
    assert tokens(f" {text}\n", length=length, vocabulary=vocabulary) == codes


def messages(count: int) -> list[dict]:
    return [{"sms": f"message number {n}\n", "label": n % 2} for n in range(count)]


def test_texts_are_cut_70_20_10_and_no_text_is_in_two_splits(tmp_path):
    write(tmp_path / "hf" / "sms_spam" / "train-0.parquet", messages(50))
    task = HuggingFaceText(length=8)
    splits = task.load(tmp_path)
    assert [len(data) for data in (splits.train, splits.test, splits.aux)] == [35, 10, 5]
    x = torch.cat([splits.train.x, splits.test.x, splits.aux.x])
    assert x.dtype == torch.int64
    assert x.shape == (50, 8)
    assert len(x.unique(dim=0)) == 50
    assert task.space.check(x) is None
    label = {tuple(tokens(m["sms"], length=8, vocabulary=8192)): m["label"] for m in messages(50)}
    for data in (splits.train, splits.test, splits.aux):
        assert data.y.tolist() == [label[tuple(row)] for row in data.x.tolist()]


def test_a_text_that_comes_twice_is_kept_once(tmp_path):
    again = [{"sms": "MESSAGE number 3", "label": 1}, {"sms": "message  number 4", "label": 0}]
    write(tmp_path / "hf" / "sms_spam" / "train-0.parquet", messages(50) + again)
    write(tmp_path / "once" / "hf" / "sms_spam" / "train-0.parquet", messages(50))
    task = HuggingFaceText()
    assert task.load(tmp_path).fingerprint() == task.load(tmp_path / "once").fingerprint()


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"sms": None, "label": 0}, "row 10 holds None instead of text"),
        ({"sms": "hello", "label": 2}, "row 10 has the label 2"),
    ],
)
def test_a_row_without_text_or_with_a_strange_label_is_named(tmp_path, row, part):
    place = tmp_path / "hf" / "sms_spam"
    write(place / "train-0.parquet", [*messages(10), row])
    message = refusal(HuggingFaceText(), tmp_path)
    assert part in message
    assert str(place) in message


def test_labels_must_be_numbers(tmp_path):
    write(tmp_path / "hf" / "sms_spam" / "train-0.parquet", [{"sms": "hello", "label": "ham"}])
    assert "row 0 has the label 'ham'; labels must be whole numbers" in refusal(HuggingFaceText(), tmp_path)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A data folder with the real files, laid out once."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data are not here: no {SHARED}")
    folder = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, SHARED / "data" / "lay_out.py", folder], check=True, capture_output=True)
    return folder


def test_the_real_photographs_have_the_known_channel_means(real):
    task = HuggingFaceImages(path="uoft-cs/cifar10-jpeg75", limit=1000)
    splits = task.load(real)
    assert [len(data) for data in (splits.train, splits.test, splits.aux)] == [1000, 1000, 1000]
    means = splits.train.x.mean((0, 2, 3)).tolist()
    assert means == pytest.approx([0.491, 0.482, 0.447], abs=0.015)
    assert set(splits.train.y.tolist()) == set(range(10))


@pytest.fixture
def one_thread():
    """A small network on two busy cores is trained many times faster by one thread than by two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_real_messages_are_learned_and_have_their_fingerprint(real, one_thread):
    lines = (SHARED / "data" / "sms_spam" / "SMSSpamCollection.tsv").read_text("utf-8").split("\n")
    table = [line.split("\t", 1) for line in lines if line]
    write(
        real / "hf" / "sms_spam" / "train-00000-of-00001.parquet",
        [{"sms": text + "\n", "label": int(label == "spam")} for label, text in table],
    )
    task = HuggingFaceText(fingerprint="e0b1b39d8ed4c57ca06bdcc309ccb9172320dd0ee32bc794d7e736de1e05732b")
    splits = task.load(real)
    assert [len(data) for data in (splits.train, splits.test, splits.aux)] == [3611, 1031, 517]
    network = train(initialise(task.default.build, Streams(0)), splits.train, task.default.recipe, Streams(0))
    right = (network(splits.test.x).argmax(1) == splits.test.y).float().mean()
    assert float(right) > 0.96

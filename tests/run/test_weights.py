import hashlib
import pickle

import pytest
import torch
from safetensors.torch import load_file

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.places import weights_path
from firstline.benchmark.run.weights import import_weights


class Touch:
    """What a pickle may hold: code that runs when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path, cache):
    """Return a function that saves a checkpoint and returns its path and digest."""

    def save(content, write=torch.save):
        path = tmp_path / "net.pth"
        with open(path, "wb") as file:
            write(content, file)
        return path, hashlib.sha256(path.read_bytes()).hexdigest()

    return save


STATE = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor([1, 2])}


def test_a_checkpoint_becomes_safetensors_of_the_same_values(checkpoint):
    digest = import_weights(*checkpoint(STATE))
    assert hashlib.sha256(weights_path(digest).read_bytes()).hexdigest() == digest
    found = load_file(weights_path(digest))
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_the_order_of_tensors_does_not_matter(checkpoint):
    assert import_weights(*checkpoint(STATE)) == import_weights(*checkpoint(dict(reversed(STATE.items()))))


def test_tied_tensors_are_imported(checkpoint):
    tied = torch.arange(3.0)
    found = load_file(weights_path(import_weights(*checkpoint({"a": tied, "b": tied, "c": tied[:2]}))))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [0, 1, 2], "b": [0, 1, 2], "c": [0, 1]}  # fmt: skip


def refused(cache, path, digest):
    with pytest.raises(FirstlineError) as caught:
        import_weights(path, digest)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache.rglob("*.safetensors"))
    return str(caught.value)


def test_another_file_than_the_published_one_is_refused(cache, checkpoint):
    path, digest = checkpoint(STATE)
    told = refused(cache, path, "0" * 64)
    assert f"is not the published file: its SHA-256 is {digest}, the recipe's {'0' * 64}" in told


def test_a_pickle_that_holds_code_is_refused_and_not_run(cache, checkpoint, tmp_path):
    told = refused(cache, *checkpoint({"w": torch.ones(1), "x": Touch(tmp_path / "touched")}))
    assert "holds more than tensors" in told
    assert "holds more than tensors" in refused(cache, *checkpoint(Touch(tmp_path / "touched"), pickle.dump))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "content",
    [[torch.ones(1)], torch.ones(1), {"epoch": 3}, {"state": {"w": torch.ones(1)}}, {1: torch.ones(1)}],
    ids=["list", "tensor", "number", "nested", "numbered"],
)
def test_what_is_no_plain_dictionary_of_tensors_is_refused(cache, checkpoint, content):
    assert "is not a plain dictionary of tensors" in refused(cache, *checkpoint(content))


def test_a_damaged_file_is_refused(cache, checkpoint):
    path, _ = checkpoint(STATE)
    path.write_bytes(path.read_bytes()[:-50])
    assert "is damaged" in refused(cache, path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_missing_file_is_one_line(cache, tmp_path):
    assert "No such file" in refused(cache, tmp_path / "net.pth", "0" * 64)

"""ORL faces, on photographs of noise in AT&T's layout and packed, and on the real ones where they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from firstline.benchmark.core.errors import DataProblem, FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.defenses.none import NoDefense
from firstline.tasks.faces import OrlFaces

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NOISE = np.random.default_rng(0).integers(0, 256, (40, 10, 112, 92), dtype=np.uint8)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A data folder with the archive, whose rows are in another order."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "orl_faces").mkdir()
    y, shot = np.divmod(np.arange(400), 10)
    order = np.random.default_rng(1).permutation(400)
    flat = NOISE.reshape(400, 112, 92)
    np.savez(folder / "orl_faces" / "orl_faces.npz", x=flat[order], y=y[order], shot=shot[order])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A data folder with the pictures as AT&T gives them."""
    folder = tmp_path_factory.mktemp("pictures")
    for who in range(40):
        (folder / "orl_faces" / f"s{who + 1}").mkdir(parents=True)
        for shot in range(10):
            name = folder / "orl_faces" / f"s{who + 1}" / f"{shot + 1}.pgm"
            name.write_bytes(b"P5\n92 112\n255\n" + NOISE[who, shot].tobytes())
    return folder


def test_both_layouts_give_the_same_data(packed, pictures):
    assert OrlFaces().load(packed).fingerprint() == OrlFaces().load(pictures).fingerprint()


@pytest.mark.parametrize("public", [0, 10])
def test_seven_photographs_of_each_class_are_trained_on_and_three_are_not(packed, public):
    task = OrlFaces(public=public)
    splits = task.load(packed)
    classes = 40 - public
    assert task.classes == classes
    assert torch.bincount(splits.train.y).tolist() == [7] * classes
    assert torch.bincount(splits.test.y).tolist() == [3] * classes
    assert len(splits.aux) == 10 * public


def test_public_people_are_no_class(packed):
    splits = OrlFaces(shrink=1).load(packed)
    whole = torch.from_numpy(NOISE).float() / 255
    assert torch.equal(splits.train.x.reshape(30, 7, 112, 92), whole[:30, :7])
    assert torch.equal(splits.aux.x.reshape(10, 10, 112, 92), whole[30:])


def test_halved_pixels_are_means_of_four_on_the_grid(packed):
    x = OrlFaces(public=0).load(packed).train.x[0, 0]
    four = NOISE[0, 0].reshape(56, 2, 46, 2).mean((1, 3)) / 255
    assert np.abs(x.numpy() - four).max() <= 0.5 / 255 + 1e-6
    assert torch.allclose((x * 255).round(), x * 255, atol=1e-4)


@pytest.mark.parametrize("network", ["softmax", "mlp", "autoencoder"])
def test_every_network_answers_with_a_logit_per_class(network):
    task = OrlFaces(network=network, public=5)
    with torch.no_grad():
        assert tuple(task.default.build()(torch.zeros(2, *task.space.shape)).shape) == (2, 35)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"public": 39}, "from 0 to 38"), ({"shrink": 3}, "1, 2 or 4"), ({"network": "cnn"}, "softmax")],
)
def test_impossible_settings_are_refused(packed, settings, says):
    task = OrlFaces(**settings)
    with pytest.raises(FirstlineError, match=says):
        task.default.build()(task.load(packed).train.x)


def test_absent_data_is_asked_for(tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(DataProblem, match=r"AT&T.*--data-dir"):
            OrlFaces().load(folder)


@pytest.mark.parametrize("content", [b"", b"P5\n92 112\n255\n12", b"P2\n92 112\n255\n" + bytes(92 * 112)])
def test_a_damaged_picture_is_a_problem_of_the_data(pictures, content):
    name = pictures / "orl_faces" / "s3" / "4.pgm"
    whole = name.read_bytes()
    name.write_bytes(content)
    try:
        with pytest.raises(DataProblem, match="can't be read"):
            OrlFaces().load(pictures)
    finally:
        name.write_bytes(whole)


@pytest.mark.skipif(not (SHARED / "orl_faces").is_dir(), reason="the real photographs are not here")
def test_the_real_photographs_can_be_told_apart():
    task = OrlFaces(public=0)
    splits = task.load(SHARED)
    system = Stack((NoDefense(),)).fit(task, splits.train, Streams(0), torch.device("cpu")).system
    right = system.respond(splits.test.x, torch.Generator()).labels == splits.test.y
    assert right.double().mean() > 0.9

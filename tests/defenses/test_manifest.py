"""A manifest catches what was changed after it was made, by row, and itself if it was changed."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from firstline.attacks.poisoning.random_label_flip import RandomLabelFlip
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.defenses.manifest import Manifest, digests, manifest_path, write_manifest

DATA = Blobs().load(None).train
CONTEXT = Context(Blobs(), Streams(0), torch.device("cpu"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def changed(part: str, edit: Callable[[Tensor], object]) -> Data:
    """The data with one of its tensors edited."""
    tensors = {"x": DATA.x.clone(), "y": DATA.y.clone(), "ids": DATA.ids.clone()}
    edit(tensors[part])
    return Data(**tensors)


def dropped(data: Data) -> list[int]:
    """Positions of the rows that go, by the manifest of the data as they were."""
    kept = Manifest(write_manifest(DATA)).collect(data, CONTEXT)
    return (~torch.isin(data.ids, kept.ids)).nonzero().flatten().tolist()


def test_what_is_as_it_was_stays():
    assert dropped(DATA) == []


@pytest.mark.parametrize(
    "data",
    [
        changed("x", lambda x: x[7, 0, 3, 3].mul_(1 + 1e-6)),
        changed("y", lambda y: y[7].neg_().add_(1)),
        changed("ids", lambda ids: ids[7].fill_(-1)),
    ],
    ids=["a pixel by one bit or so", "a label", "an id"],
)
def test_a_tampered_row_goes_and_no_other(data):
    assert dropped(data) == [7]


def test_rows_that_change_places_go():
    data = changed("ids", lambda ids: ids[:3].copy_(torch.tensor([1, 2, 0])))
    assert dropped(data) == [0, 1, 2]


def test_rows_may_come_in_another_order_and_leave_gaps():
    assert dropped(DATA.rows(torch.tensor([9, 3, 200]))) == []


def test_added_rows_go():
    data = Data(
        torch.cat([DATA.x, DATA.x[:2]]),
        torch.cat([DATA.y, DATA.y[:2]]),
        torch.cat([DATA.ids, torch.tensor([-1, 999])]),
    )
    assert dropped(data) == [256, 257]


def test_all_flipped_labels_are_found_and_nothing_else():
    threat = Threat.parse("poisoning/gray/availability:10%")
    made = RandomLabelFlip().poison(DATA, Blobs(), 25, threat, Streams(0))
    assert sorted(dropped(made.data)) == sorted(made.poisoned.tolist())


def test_another_type_of_number_is_another_row():
    assert digests(DATA)["0"] != digests(Data(DATA.x.double(), DATA.y, DATA.ids))["0"]


def test_a_manifest_that_was_changed_is_told():
    sha256 = write_manifest(DATA)
    listed = json.loads(manifest_path(sha256).read_text())
    listed["0"] = digests(changed("y", lambda y: y[0].fill_(1)))["0"]
    manifest_path(sha256).write_text(json.dumps(listed, sort_keys=True))
    with pytest.raises(DataProblem, match="changed or damaged"):
        Manifest(sha256).collect(DATA, CONTEXT)


@pytest.mark.parametrize(("sha256", "told"), [("", "none given"), ("ab12", "ab12")])
def test_a_manifest_that_is_not_there_is_told(sha256, told):
    with pytest.raises(DataProblem, match=rf"no manifest with SHA-256 \(?{told}.*write_manifest"):
        Manifest(sha256).collect(DATA, CONTEXT)

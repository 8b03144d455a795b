"""Sanitisers of training data find what was planted, row by row, and leave the rest as it was."""

import importlib.util
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import packages
from firstline.benchmark.core.contracts import Context, Task
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.defenses.confident_learning import ConfidentLearning
from firstline.defenses.judges import described, judge
from firstline.defenses.knn_sanitiser import KNNSanitiser
from firstline.defenses.loss_trimming import LossTrimming
from firstline.defenses.sanitising import coordinates, within_share
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Digits()
TRAIN = TASK.load(None).train.rows(torch.arange(500))
BLOBS = Blobs(gap=3.0, train=96)  # two classes that nothing confuses
needs_cleanlab = pytest.mark.skipif(importlib.util.find_spec("cleanlab") is None, reason="needs cleanlab")


def context(task: Task = TASK, seed: int = 0) -> Context:
    return Context(task, Streams(seed), CPU)


def flipped(data: Data, classes: int, share: float = 0.2) -> tuple[Data, Tensor]:
    """Return data with a share of the labels wrong, and which rows (n,) those are."""
    rng = torch.Generator().manual_seed(3)
    rows = torch.randperm(len(data), generator=rng)[: round(share * len(data))]
    bad = torch.zeros(len(data), dtype=torch.bool)
    bad[rows] = True
    shift = torch.randint(1, classes, (len(data),), generator=rng)
    return replace(data, y=torch.where(bad, (data.y + shift) % classes, data.y)), bad


def rates(kept: Data, data: Data, bad: Tensor) -> tuple[float, float]:
    """Return which share of the bad rows is gone, and which of the others."""
    gone = ~torch.isin(data.ids, kept.ids)
    return float(gone[bad].float().mean()), float(gone[~bad].float().mean())


def shuffled(data: Data) -> Data:
    return data.rows(torch.randperm(len(data), generator=torch.Generator().manual_seed(8)))


@pytest.mark.parametrize(
    ("make", "tpr", "fpr"),
    [
        (partial(KNNSanitiser, relabel=False), 0.85, 0.05),
        (partial(LossTrimming, share=0.2), 0.85, 0.05),
        pytest.param(ConfidentLearning, 0.8, 0.05, marks=needs_cleanlab),
    ],
    ids=["knn-sanitiser", "loss-trimming", "confident-learning"],
)
def test_flipped_labels_are_found_and_few_others(make, tpr, fpr):
    data, bad = flipped(TRAIN, 10)
    kept = make().collect(data, context())
    found, wrong = rates(kept, data, bad)
    assert found > tpr
    assert wrong < fpr
    assert kept.ids.tolist() == sorted(set(kept.ids.tolist()))
    assert torch.equal(kept.x, data.x[kept.ids])
    assert torch.equal(kept.y, data.y[kept.ids])


def line(labels: list[int]) -> Data:
    """Rows at 0.00, 0.01, ... with these labels."""
    return Data.of(torch.arange(len(labels)).reshape(-1, 1) / 100, torch.tensor(labels))


class Line(Blobs):
    space = InputSpace((1,))
    classes = 3


@pytest.mark.parametrize(
    ("k", "eta", "before", "after"),
    [
        (2, 0.5, [0, 0, 1, 0, 0, 2, 2, 2], [0, 0, 0, 0, 0, 2, 2, 2]),
        # The fourth row has a 2 and a 0 beside it: half is enough, and the smaller label wins the tie.
        (2, 0.5, [2, 2, 2, 1, 0, 0, 0], [2, 2, 2, 0, 0, 0, 0]),
        (2, 0.6, [2, 2, 2, 1, 0, 0, 0], [2, 2, 2, 1, 0, 0, 0]),
        # Labels are changed together: the neighbours' are those that came.
        (2, 1.0, [0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]),
    ],
)
def test_rows_get_the_label_of_their_neighbours(k, eta, before, after):
    found = KNNSanitiser(k=k, eta=eta).collect(line(before), context(Line()))
    assert found.y.tolist() == after
    assert found.ids.tolist() == list(range(len(before)))


def test_relabelling_mends_what_was_flipped():
    data, bad = flipped(BLOBS.load(None).train, 2, 0.1)
    clean = BLOBS.load(None).train.y
    assert int((data.y != clean).sum()) == int(bad.sum()) == 10
    assert torch.equal(KNNSanitiser().collect(data, context(BLOBS)).y, clean)


def test_neighbours_find_a_row_wherever_it_stands():
    data, _ = flipped(TRAIN, 10)
    first, again = (KNNSanitiser().collect(d, context()) for d in (data, shuffled(data)))
    assert torch.equal(first.y[again.ids], again.y)


def test_rows_that_agree_with_each_other_on_a_trigger_are_missed():
    data, bad = flipped(TRAIN, 10, 0.1)
    x, y = data.x.clone(), TRAIN.y.clone()
    x[bad, :, :3, :3], y[bad] = 1.0, 0
    kept = KNNSanitiser(relabel=False).collect(Data(x, y, data.ids), context())
    assert rates(kept, data, bad)[0] < 0.3


def test_trimming_leaves_its_share_out():
    kept = LossTrimming(share=0.1, rounds=1).collect(TRAIN, context())
    assert len(kept) == 450


def test_each_round_of_trimming_trains_on_what_the_last_one_kept(monkeypatch):
    from firstline.defenses import loss_trimming

    trained: list[Data] = []
    losses = torch.arange(96.0)

    def spy(data, ctx, rng):
        trained.append(data)

    def logits(network, data, ctx):
        assert len(data) == 96  # all are judged, also those that were left out before
        worse = losses.roll(10 * len(trained))
        return torch.stack([torch.where(data.y == c, 0.0, worse) for c in range(2)], 1)

    monkeypatch.setattr(loss_trimming, "judge", spy)
    monkeypatch.setattr(loss_trimming, "logits_of", logits)
    data = BLOBS.load(None).train
    kept = LossTrimming(share=10 / 96, rounds=3).collect(data, context(BLOBS))
    missing = [set(range(96)) - set(d.ids.tolist()) for d in (*trained, kept)]
    assert missing == [set(), set(range(10)), set(range(10, 20)), set(range(20, 30))]


@needs_cleanlab
def test_classes_without_rows_do_not_confuse_cleanlab():
    few = TRAIN.rows((TRAIN.y == 3) | (TRAIN.y == 7))
    data, bad = flipped(few, 10, 0.0)
    y = data.y.clone()
    y[:5] = 10 - y[:5]  # 3 and 7 change places
    bad[:5] = True
    assert rates(ConfidentLearning().collect(replace(data, y=y), context()), data, bad)[0] >= 0.8


def test_without_cleanlab_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(
        FirstlineError, match=r"cleanlab, which is not .* pip install 'firstline\[poisoning\]'"
    ):
        ConfidentLearning()


@pytest.mark.parametrize(
    "defense", [KNNSanitiser(k=0), KNNSanitiser(k=500), KNNSanitiser(eta=0.0), KNNSanitiser(eta=1.1)], ids=str
)
def test_neighbours_out_of_range_are_told(defense):
    with pytest.raises(FirstlineError, match="k must be at least 1 and below the 500 rows, and eta above 0"):
        defense.collect(TRAIN, context())


@pytest.mark.parametrize("defense", [LossTrimming(share=0.5), LossTrimming(share=-0.1)], ids=str)
def test_a_share_to_leave_out_is_a_share(defense):
    with pytest.raises(FirstlineError, match="share is a share of the rows, at least 0 and below"):
        defense.collect(TRAIN, context())


def test_rounds_must_be_at_least_one():
    with pytest.raises(FirstlineError, match="rounds must be at least 1"):
        LossTrimming(rounds=0).collect(TRAIN, context())


def test_coordinates_are_shares_of_the_ranges():
    space = InputSpace((2,), low=(0.0, -10.0), high=(4.0, 10.0))
    points = coordinates(torch.tensor([[1.0, 0.0], [4.0, -10.0]]), space)
    assert points.tolist() == [[0.25, 0.5], [1.0, 0.0]]


def test_categories_are_equally_far_apart():
    space = InputSpace((2,), high=(3.0, 1.0), categorical=(True, False))
    points = coordinates(torch.tensor([[0.0, 0.5], [1.0, 0.5], [3.0, 0.5], [3.0, 1.0]]), space)
    apart = torch.cdist(points, points)
    assert apart[0, 1:3].tolist() == pytest.approx([1.0, 1.0])
    assert float(apart[2, 3]) == pytest.approx(0.5)


def test_the_worst_of_each_class_go():
    scores = torch.tensor([5.0, 1.0, 9.0, 0.0, 3.0, 7.0, 2.0, 8.0])
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert within_share(scores, y, 0.25).tolist() == [True, True, False, True, True, True, True, False]
    assert within_share(scores, y, 0.0).all()


def test_features_stand_in_the_order_of_the_rows():
    data = Blobs().load(None).train
    network = judge(data, context(Blobs()), Streams(0))
    with torch.no_grad():
        expected = network[:-1](data.x)
    torch.testing.assert_close(described(data, context(Blobs())), expected.double())


@pytest.mark.parametrize(
    "make", [KNNSanitiser, LossTrimming, pytest.param(ConfidentLearning, marks=needs_cleanlab)]
)
def test_sanitisers_are_the_same_for_the_same_seed(make):
    data, _ = flipped(BLOBS.load(None).train, 2)
    first, again = (Stack((make(),)).fit(BLOBS, data, Streams(1), CPU).kept for _ in range(2))
    assert torch.equal(first, again)

"""Rows that keep their ids, fingerprints that notice everything, and the space that inputs live in."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import ContractBroken


def rows(n: int, start: float = 0.0) -> Data:
    return Data.of(
        torch.arange(n * 4, dtype=torch.float32).reshape(n, 1, 2, 2) / 64 + start, torch.arange(n) % 3
    )


SPLITS = Splits(train=rows(6), test=rows(4, 0.1), aux=rows(3, 0.2))


def changed(data: Data, what: str) -> Data:
    if what == "value":
        x = data.x.clone()
        x[-1, 0, 1, 1] += 1e-6
        return replace(data, x=x)
    if what == "label":
        return replace(data, y=torch.cat([data.y[:-1], data.y[-1:] + 1]))
    if what == "order":
        return data.rows(torch.arange(len(data)).flip(0))
    if what == "shape":
        return replace(data, x=data.x.reshape(len(data), 4))
    if what == "dtype":
        return replace(data, x=data.x.double())
    return data.rows(torch.arange(len(data) - 1))


@pytest.mark.parametrize("split", ["train", "test", "aux"])
@pytest.mark.parametrize("what", ["value", "label", "order", "shape", "dtype", "length"])
def test_the_fingerprint_changes_with_anything_in_any_split(split, what):
    other = replace(SPLITS, **{split: changed(getattr(SPLITS, split), what)})
    assert other.fingerprint() != SPLITS.fingerprint()


def test_the_fingerprint_tells_which_rows_are_in_which_split():
    assert Splits(SPLITS.test, SPLITS.train, SPLITS.aux).fingerprint() != SPLITS.fingerprint()
    moved = Splits(SPLITS.train, SPLITS.aux, SPLITS.test)
    assert moved.fingerprint() != SPLITS.fingerprint()


def test_equal_splits_have_one_fingerprint_however_they_lie_in_memory():
    strided = Data(SPLITS.train.x.repeat_interleave(2, 0)[::2], SPLITS.train.y, SPLITS.train.ids)
    assert replace(SPLITS, train=strided).fingerprint() == SPLITS.fingerprint()


@pytest.mark.parametrize(
    "index", [torch.tensor([4, 1]), torch.tensor([False, True, False, False, True, False])]
)
def test_rows_keep_their_ids_and_labels(index):
    chosen = rows(6).rows(index)
    assert sorted(chosen.ids.tolist()) == [1, 4]
    assert torch.equal(chosen.y, chosen.ids % 3)
    assert torch.equal(rows(6).x[chosen.ids], chosen.x)


def test_rows_of_rows_still_have_the_first_ids():
    assert rows(6).rows(torch.tensor([5, 3, 1])).rows(torch.tensor([2, 0])).ids.tolist() == [1, 5]


@pytest.mark.parametrize(("labels", "ids"), [(5, 6), (6, 5)])
def test_data_of_unequal_lengths_is_refused(labels, ids):
    with pytest.raises(ContractBroken, match=f"6 examples, {labels} labels, {ids} ids"):
        Data(torch.zeros(6, 1), torch.zeros(labels, dtype=torch.int64), torch.arange(ids))


GRIDS = {
    "8-bit": InputSpace((6,), grid=1 / 255),
    "17 levels": InputSpace((6,), grid=1 / 16),
    "from -1": InputSpace((6,), low=-1.0, high=1.0, grid=0.25),
    "per feature": InputSpace(
        (6,),
        low=(0.0,) * 5 + (-1.0,),
        high=(1.0, 2.0, 1.0, 1.0, 9.0, 1.0),
        grid=(0.25, 0.5, 0.0, 0.1, 1.0, 0.0),
    ),
    "continuous": InputSpace((6,)),
}
NUMBERS = st.lists(st.floats(-3, 12, width=32), min_size=6, max_size=6).map(lambda x: torch.tensor([x]))


@pytest.mark.parametrize("name", GRIDS)
@given(NUMBERS)
@settings(deadline=None, max_examples=50)
def test_rounding_is_idempotent_and_lands_on_the_grid_inside_the_box(name, x):
    space = GRIDS[name]
    once = space.round(x)
    low, high, grid = (torch.as_tensor(v).expand(6) for v in (space.low, space.high, space.grid))
    assert torch.equal(space.round(once), once)
    assert ((once >= low) & (once <= high)).all()
    on_grid = grid > 0
    steps = ((once[0] - low) / grid.clamp_min(1e-9))[on_grid]
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    within = x.clamp(low, high)
    assert ((once - within).abs()[0] <= grid / 2 + 1e-5).all()  # the nearest one


def test_a_feature_without_a_grid_is_left_alone_beside_those_with_one():
    assert GRIDS["per feature"].round(torch.tensor([[0.3, 0.3, 0.3, 0.3, 0.3, 0.3]]))[0].tolist() == (
        pytest.approx([0.25, 0.5, 0.3, 0.3, 0.0, 0.3])
    )


def test_the_box_can_differ_by_feature():
    low, high = InputSpace((1, 2), low=(0.0, -1.0), high=5.0).box(torch.zeros(3, 1, 2))
    assert low.tolist() == [[0.0, -1.0]]
    assert float(high) == 5.0


@pytest.mark.parametrize(
    ("space", "free"),
    [
        (InputSpace((3,)), None),
        (InputSpace((3,), mutable=(True,) * 3, categorical=(False,) * 3), None),
        (InputSpace((3,), mutable=(True, False, True)), [1, 0, 1]),
        (InputSpace((3,), categorical=(True, False, False)), [0, 1, 1]),
        (InputSpace((3,), mutable=(True, False, True), categorical=(True, False, False)), [0, 0, 1]),
    ],
)
def test_what_is_mutable_and_no_category_may_move(space, free):
    found = space.movable(torch.zeros(2, 3))
    assert (found if found is None else found.tolist()) == free


@pytest.mark.parametrize("name", ["low", "high", "grid", "mutable", "categorical", "features"])
def test_a_space_with_too_few_entries_is_refused_by_name(name):
    entries = {"features": ("a", "b"), "mutable": (True, False), "categorical": (True, False)}
    with pytest.raises(ContractBroken, match=f"{name} has 2 entries for 12 features"):
        InputSpace((3, 4), **{name: entries.get(name, (0.5, 0.5))})


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 3), r"shape \(3,\) instead of \(2,\)"),
        (torch.tensor([[0.0, float("nan")]]), "NaN or infinite"),
        (torch.tensor([[0.0, float("inf")]]), "NaN or infinite"),
        (torch.tensor([[0.0, 1.1], [0.0, 0.5], [-0.1, 0.5]]), "2 of 3 examples outside"),
    ],
)
def test_what_is_wrong_with_inputs_is_said(x, said):
    found = InputSpace((2,)).check(x)
    assert found is not None
    assert re.match(said, found)


def test_nothing_is_wrong_with_inputs_at_the_edge_of_the_box():
    assert InputSpace((2,)).check(torch.tensor([[0.0, 1.0]])) is None
    assert InputSpace((2,)).check(torch.zeros(0, 2)) is None

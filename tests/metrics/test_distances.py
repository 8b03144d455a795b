"""Distances between rows, against NumPy and against the norms that attacks are held to."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from firstline.benchmark.core.norms import distance
from firstline.benchmark.metrics.distances import NORMS, row_distance

ORDER = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}
VALUES = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1.0])
PAIRS = array_shapes(min_dims=1, max_dims=4, max_side=5).flatmap(
    lambda shape: st.tuples(arrays(np.float64, shape, elements=VALUES), arrays(np.float64, shape, elements=VALUES))
)  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@given(PAIRS)
@settings(deadline=None, max_examples=60)
def test_distances_are_those_of_numpy(norm, pair):
    a, b = pair
    expected = [np.linalg.norm((x - y).reshape(-1), ord=ORDER[norm]) for x, y in zip(a, b, strict=True)]
    assert row_distance(a, b, norm) == pytest.approx(expected, rel=1e-12)
    assert row_distance(b, a, norm).tolist() == row_distance(a, b, norm).tolist()


@pytest.mark.parametrize("norm", NORMS)
def test_distances_are_those_that_attacks_are_held_to(norm):
    a, b = np.random.default_rng(0).integers(0, 3, (2, 6, 3, 4, 4)).astype(float)
    expected = distance(torch.from_numpy(a), torch.from_numpy(b), norm)
    assert row_distance(a, b, norm) == pytest.approx(expected.numpy(), rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_common_offset_changes_nothing(norm):
    a, b = np.random.default_rng(0).integers(0, 1024, (2, 5, 300)) / 1024  # exact beside 1e9
    assert row_distance(a + 1e9, b + 1e9, norm).tolist() == row_distance(a, b, norm).tolist()


def test_narrow_types_and_other_layouts_are_taken():
    a = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    expected = np.abs(a.astype(float) - 1).sum(axis=1)
    assert row_distance(a, np.ones((4, 6), np.uint8), "l1") == pytest.approx(expected, rel=1e-12)
    assert row_distance(a.T, np.ones((6, 4)), "l1") == pytest.approx(
        np.abs(a.T.astype(float) - 1).sum(axis=1), rel=1e-12
    )


@pytest.mark.parametrize(
    ("a", "b", "norm", "said"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), "l3", "no norm is called 'l3'; there are linf, l2, l1, l0"),
        (np.ones((2, 3)), np.ones((3, 2)), "l2", r"a and b must have one shape, got \(2, 3\) and \(3, 2\)"),
        (np.ones((0, 3)), np.ones((0, 3)), "l2", r"must be \(n, \.\.\.\) and not empty, got shape \(0, 3\)"),
        (np.array(1.0), np.array(1.0), "l2", r"must be \(n, \.\.\.\) and not empty, got shape \(\)"),
        (np.array([[np.nan, np.inf]]), np.ones((1, 2)), "linf", "2 of 2 values of a are NaN or infinite"),
        (np.ones((1, 2)), np.array([[1, -np.inf]]), "l0", "1 of 2 values of b are NaN or infinite: leave"),
    ],
)
def test_what_has_no_distance_is_refused(a, b, norm, said):
    with pytest.raises(ValueError, match=said):
        row_distance(a, b, norm)

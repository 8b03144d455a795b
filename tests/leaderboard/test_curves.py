"""Security curves: means over seeds, read off and drawn."""

import pytest

from firstline.leaderboard.curves import curve


@pytest.fixture
def cell(new):
    """Return the curve of a cell whose records, one for each seed, have these points."""

    def make(*seeds):
        return curve(new(seed=seed, curves={"robust_accuracy": points}) for seed, points in enumerate(seeds))

    return make


def test_seeds_are_averaged(cell):
    found = cell([(0.0, 1.0), (0.5, 0.5)], [(0.0, 0.8), (0.5, 0.1)])
    assert found.radii == (0.0, 0.5)
    assert found.left == pytest.approx((0.9, 0.3))


@pytest.mark.parametrize(
    ("radius", "left"),
    [(0.0, 1.0), (0.05, 1.0), (0.1, 0.7), (0.1 + 1e-12, 0.7), (0.1 - 1e-12, 0.7), (0.3, 0.2), (0.31, None)],
)
def test_a_curve_is_read_as_steps_and_not_beyond_its_end(cell, radius, left):
    assert cell([(0.0, 1.0), (0.1, 0.7), (0.3, 0.2)]).at(radius) == left


def test_a_drawing_goes_from_all_to_none(cell):
    assert cell([(0.0, 1.0), (0.1, 0.5), (0.4, 0.0)]).drawn() == "0.0,0.0 40.0,24.0 160.0,48.0"


@pytest.mark.parametrize(
    "seeds",
    [
        [],
        [[]],
        [[(0.0, 1.0)]],
        [[(0.0, 1.0), (0.0, 0.5)]],
        [[(0.2, 1.0), (0.1, 0.5)]],
        [[(-0.1, 1.0), (0.1, 0.5)]],
        [[(0.0, 1.5), (0.1, 0.5)]],
        [[(0.0, 1.0), (0.1, 0.5)], [(0.0, 1.0), (0.2, 0.5)]],
        [[(0.0, 1.0), (0.1, 0.5)], [(0.0, 1.0)]],
    ],
    ids=["no record", "empty", "a point", "upright", "backwards", "negative", "no share", "radii", "lengths"],
)
def test_what_is_no_curve_is_not_drawn(cell, seeds):
    assert cell(*seeds) is None
